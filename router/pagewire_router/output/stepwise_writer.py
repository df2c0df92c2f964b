"""Writes the messages of one stream without waking a task for each of them.

A task that awaits a write sleeps until the transport has taken the message, and is woken twice for each message: when
it is due, and when it was taken. Both cost about as much as the rest of a message. This writer begins a write, as a
task would, by the first step of its coroutine, and takes the last step when it looks again, which is when the next
message is due. A client that does not read leaves the write waiting, and no further one is begun.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any


class NotRead(Exception):
    """The transport has taken no message for too long: the client does not read."""


class StepwiseWriter:
    """The messages of one stream. Its methods raise what a write failed with."""

    __slots__ = (
        "_begin_write",
        "_error",
        "_is_watching",
        "_on_idle",
        "_queue",
        "_taken",
        "_timer",
        "_unread_s",
        "_write",
    )

    def __init__(
        self, begin_write: Callable[[bytes], Coroutine[Any, Any, None]], unread_s: float | None = None
    ) -> None:
        """
        Args:
            begin_write: makes the coroutine that writes one message. It awaits futures of the running loop alone.
            unread_s: longest time that the transport may leave a message while others wait for it, before the stream
                fails with NotRead; None: for ever.
        """
        self._begin_write = begin_write
        self._unread_s = unread_s
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[bytes] = deque()
        self._write: Coroutine[Any, Any, None] | None = None
        """The write that was begun and has not ended."""
        self._taken: asyncio.Future[Any] | None = None
        """What it waits for."""
        self._is_watching = False
        """_on_taken() will be called when that is done."""
        self._error: BaseException | None = None
        self._on_idle: Callable[[], object] | None = None

    def write_bytes(self, messages: Sequence[bytes]) -> None:
        """Begins to write serialized messages, after what was given before."""
        self._queue.extend(messages)
        if not self._advance() and self._queue:
            self._watch()

    def is_idle(self) -> bool:
        """Whether the transport has taken all messages."""
        return self._advance()

    def when_idle(self, callback: Callable[[], object]) -> None:
        """Calls back once when the transport has taken all messages, or has refused one: the last callback given.

        To be called while it is not idle.
        """
        self._on_idle = callback
        self._watch()

    async def drain(self) -> None:
        """Returns when the transport has taken all messages."""
        while not self._advance():
            assert self._taken is not None
            taken, _ = await asyncio.wait((self._taken,), timeout=self._unread_s)
            if not taken:
                raise NotRead

    def close(self) -> None:
        """Gives up what was not written."""
        self._queue.clear()
        self._stop_timer()
        self._on_idle = self._error = None
        if self._write is not None:
            self._write.close()
            self._write = None
        if self._taken is not None:
            self._taken.cancel()

    def _advance(self) -> bool:
        """Goes on as far as the transport takes messages. Returns whether it has taken all."""
        if self._error is not None:
            raise self._error
        while True:
            if self._write is None:
                if not self._queue:
                    return True
                self._write = self._begin_write(self._queue.popleft())
            elif self._taken is not None and not self._taken.done():
                return False
            self._step()

    def _step(self) -> None:
        """Takes one step of the write, as a task would."""
        assert self._write is not None
        try:
            future = self._write.send(None)
        except StopIteration:
            self._write = self._taken = None
        except BaseException as error:
            self._write, self._error = None, error
            raise
        else:
            # The sign of a future to its task that it is awaited; without it taken back, nobody else could await it.
            future._asyncio_future_blocking = False
            self._taken = future

    def _watch(self) -> None:
        if not self._is_watching:
            assert self._taken is not None
            self._is_watching = True
            self._taken.add_done_callback(self._on_taken)
            if self._unread_s is not None:
                self._timer = asyncio.get_running_loop().call_later(self._unread_s, self._give_up)

    def _on_taken(self, _taken: "asyncio.Future[Any]") -> None:
        self._is_watching = False
        self._stop_timer()
        try:
            is_idle = self._advance()
        except Exception:
            is_idle = True  # Whoever looks next meets the error.
        if not is_idle:
            self._watch()
        elif self._on_idle is not None:
            callback, self._on_idle = self._on_idle, None
            callback()

    def _give_up(self) -> None:
        """The message that is being written has waited for too long."""
        self._error = NotRead()
        self._queue.clear()
        if self._on_idle is not None:
            callback, self._on_idle = self._on_idle, None
            callback()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
