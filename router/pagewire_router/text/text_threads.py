"""Threads that work on long texts beside the event loop, and the bounded queue in front of them.

A text that waits counts as a queued request, and is refused if the router may not queue more. Clients take turns, so
that one with many texts does not delay another with a single one. When the queue is full, the client with the most
waiting texts loses its newest one.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from pagewire_router.caller import Caller
from pagewire_router.errors import QueueFull, Unavailable
from pagewire_router.fair_slots import FairSlots

T = TypeVar("T")
A = TypeVar("A")
CHARS_PER_TOKEN = 4
"""Estimated characters of a token, for texts that are not tokenized yet."""
MIN_RETRY_S, MAX_RETRY_S = 0.1, 5.0
STOP_RETRY_S = 1.0
"""Retry delay of calls to a router that stops; they will reach another router, or its successor."""
_SMOOTHING = 0.1
"""Weight of the newest text in the average time of one."""

_Job = tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """Bounds of the queue, for waiting texts and tokenized requests together."""

    max_requests: int = 4096
    max_tokens: int = 4 * 1024 * 1024
    num_queued: Callable[[], int] = lambda: 0
    """Returns the number of requests that wait after they were tokenized."""


class TextThreads:
    """Runs functions on threads. Everything but the functions runs on the event loop's thread.

    The threads do not keep the process alive.
    """

    def __init__(self, num_threads: int, bounds: QueueBounds) -> None:
        self._bounds = bounds
        self._num_threads = num_threads
        self._slots = FairSlots(num_threads)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._num_tokens = 0
        self._is_closed = False
        self._text_s = 0.01
        for number in range(num_threads):
            threading.Thread(target=self._work, name=f"text-{number}", daemon=True).start()

    @property
    def num_waiting(self) -> int:
        """Number of texts that wait for a thread."""
        return self._slots.num_waiting

    def submit(self, function: Callable[[], object]) -> None:
        """Runs a function on a thread, and ignores its result and errors."""
        self._jobs.put((function, lambda _result, _error: None))

    async def run(self, function: Callable[[A], T], argument: A, *, num_chars: int, caller: Caller) -> T:
        """Runs a function of a text on a thread, when it is the caller's turn. Raises QueueFull, Unavailable.

        Args:
            num_chars: length of the text, about.
        """
        if self._is_closed:
            raise Unavailable("the router stops", retry_after_s=STOP_RETRY_S)
        if not self._slots.take():
            await self._wait(num_chars // CHARS_PER_TOKEN, caller)
        loop = asyncio.get_running_loop()
        end: asyncio.Future[T] = loop.create_future()
        began_s = time.monotonic()

        def on_loop(result: Any, error: BaseException | None) -> None:
            self._text_s += _SMOOTHING * (time.monotonic() - began_s - self._text_s)
            self._slots.release()  # Only now: the thread was at work, whether or not anybody still waited for it.
            if end.done():
                return
            if error is None:
                end.set_result(result)
            else:
                end.set_exception(error)

        def on_end(result: Any, error: BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(on_loop, result, error)

        self._jobs.put((lambda: function(argument), on_end))
        return await end

    def close(self) -> None:
        """Ends the threads after their current work. Waiting texts are refused."""
        self._is_closed = True
        self._slots.fail_waiting(Unavailable("the router stops", retry_after_s=STOP_RETRY_S))
        for _ in range(self._num_threads):
            self._jobs.put(None)

    async def _wait(self, num_tokens: int, caller: Caller) -> None:
        self._check_room(num_tokens, caller)
        self._num_tokens += num_tokens
        try:
            await self._slots.wait(caller)
        finally:
            self._num_tokens -= num_tokens

    def _check_room(self, num_tokens: int, caller: Caller) -> None:
        bounds, num_waiting = self._bounds, self._slots.num_waiting
        num_requests = num_waiting + bounds.num_queued()
        if num_requests >= bounds.max_requests:
            what = f"{num_requests} requests wait, at most {bounds.max_requests} may"
        elif num_waiting and self._num_tokens + num_tokens > bounds.max_tokens:
            what = f"about {self._num_tokens} tokens wait to be tokenized, at most {bounds.max_tokens} may"
        else:
            return
        retry_after_s = self._text_s * num_waiting / 2 / self._num_threads
        error = QueueFull(what, retry_after_s=min(max(retry_after_s, MIN_RETRY_S), MAX_RETRY_S))
        if not self._slots.displace(caller, error):
            raise error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, on_end = job
            try:
                result = function()
            except BaseException as error:
                on_end(None, error)
            else:
                on_end(result, None)
            del job, function, on_end  # Frees the text: the next job may come much later.
