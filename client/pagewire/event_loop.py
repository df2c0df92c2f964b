"""The event loop that runs the calls of synchronous clients, on one background thread of the process.

There is one for all clients: grpc.aio wakes every event loop of a process for every event.
"""

import asyncio
import concurrent.futures
import os
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

from pagewire.errors import Cancelled

T = TypeVar("T")

CLOSED = "the client was closed while the request ran"
CALLBACK = "a synchronous client cannot be called from a callback of a client; use AsyncClient"
FORKED = (
    "gRPC does not work in a process that was forked after its parent had used it; "
    'start such processes with multiprocessing\'s "spawn", or fork before the first request'
)


class BackgroundLoop:
    """Runs coroutines for synchronous callers. Its thread is a daemon and idles while nobody calls."""

    def __init__(self) -> None:
        self._loop = _new_event_loop()
        self.is_lost = False
        """Whether this object is the copy in a forked process, which lacks the thread."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="pagewire-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. An interrupted caller cancels it.

        Raises:
            RuntimeError: called on the loop's own thread, as from a callback of a client, which would wait for itself,
                or in a forked copy of its process, which has no such thread.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError(CALLBACK)
        if self.is_lost:
            coroutine.close()
            raise RuntimeError(FORKED)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled(CLOSED) from None
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Runs a coroutine for which nobody waits. Takes no lock that another thread may hold: finalizers call it."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """The generator's items, fetched ahead. A caller that leaves the iteration closes it.

        Raises:
            RuntimeError: as run does.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(CALLBACK)
        if self.is_lost:
            raise RuntimeError(FORKED)
        received: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        pump = asyncio.run_coroutine_threadsafe(_pump(items, received), self._loop)
        try:
            while (item := received.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0]
        finally:
            pump.cancel()


async def _pump(items: AsyncGenerator[T, None], received: "queue.SimpleQueue[tuple[T] | BaseException | None]") -> None:
    try:
        async for item in items:
            received.put((item,))
        received.put(None)
    except asyncio.CancelledError:
        received.put(Cancelled(CLOSED))
        raise
    except Exception as exc:  # the caller's thread raises it
        received.put(exc)
    finally:
        await items.aclose()


_started: BackgroundLoop | None = None
_starting = threading.Lock()


def background_loop() -> BackgroundLoop:
    """Returns the process's one background loop; starts it on first use, from any thread."""
    global _started
    if _started is None:
        with _starting:
            if _started is None:
                _started = BackgroundLoop()
    return _started


def _mark_lost() -> None:
    if _started is not None:
        _started.is_lost = True


os.register_at_fork(after_in_child=_mark_lost)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # an extra: a fifth less time per message
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
