"""Server-sent events: the stream of one answer, which several requests may write to."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pagewire_router.output.output_buffer import Output
from pagewire_router.output.stepwise_writer import StepwiseWriter

Send = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
WriteNow = Callable[[bytes], bool]
"""Gives part of a body that has begun to the transport; returns False, and does nothing, where Send must do so."""
WRITE_NOW = "pagewire.write_now"
"""The ASGI extension whose "write" is a WriteNow."""
Outputs = Sequence[Output]
Encode = Callable[[Outputs], bytes]
"""Makes events of the outputs of one request; none if there is nothing to tell."""
KEEP_ALIVE_S = 15.0
"""A stream without events for so long, or up to twice as long, has a sign of life: proxies close what is silent."""
COMMENT = b": keep-alive\n\n"
"""A sign of life that clients of server-sent events skip."""


class EventStream:
    """The events of one answer. The transport takes them as long as the client reads; further ones wait."""

    def __init__(self, send: Send, sign_of_life: bytes = COMMENT, write_now: WriteNow | None = None) -> None:
        """sign_of_life: an event that clients skip."""

        def begin_write(data: bytes) -> Coroutine[Any, Any, None]:
            return send({"type": "http.response.body", "body": data, "more_body": True})

        self._send = send
        self._write_now = write_now
        self._writer = StepwiseWriter(begin_write)
        self._waiting: dict[EventWriter, Callable[[], object]] = {}
        self.num_bytes = 0
        """Of all events so far."""
        self._sign_of_life = sign_of_life
        self._num_bytes_before = 0
        """What num_bytes was when the timer began."""
        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._keep_alive)

    def write(self, events: bytes) -> None:
        """Begins to write events, each of which ends in an empty line."""
        self.num_bytes += len(events)
        if self._write_now is None or not self._writer.is_idle() or not self._write_now(events):
            self._writer.write_bytes((events,))

    async def end(self, events: bytes = b"") -> None:
        """Writes the last events and ends the answer."""
        await self._writer.drain()
        self.num_bytes += len(events)
        await self._send({"type": "http.response.body", "body": events, "more_body": False})

    def close(self) -> None:
        """Gives up what was not written."""
        self._timer.cancel()
        self._waiting.clear()
        self._writer.close()

    def is_idle(self) -> bool:
        """Whether the transport has taken all events."""
        return self._writer.is_idle()

    async def drain(self) -> None:
        """Returns when it has."""
        await self._writer.drain()

    def when_idle(self, writer: "EventWriter", callback: Callable[[], object]) -> None:
        """Calls back once when it has: for each writer the last callback given."""
        self._waiting[writer] = callback
        self._writer.when_idle(self._call_back)

    def _keep_alive(self) -> None:
        # An error is met by whoever writes next.
        with contextlib.suppress(Exception):
            if self.num_bytes == self._num_bytes_before and self._writer.is_idle():
                self._writer.write_bytes((self._sign_of_life,))
        self._num_bytes_before = self.num_bytes
        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._keep_alive)

    def _call_back(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for callback in waiting.values():
            callback()


class EventWriter:
    """Writes the outputs of one request as events. An OutputWriter (see inference.py)."""

    __slots__ = ("_encode", "_events")

    def __init__(self, events: EventStream, encode: Encode) -> None:
        self._events = events
        self._encode = encode

    def write(self, outputs: Outputs) -> None:
        """Begins to write outputs."""
        data = self._encode(outputs)
        if data:
            self._events.write(data)

    def is_idle(self) -> bool:
        """Whether all events that were begun are written."""
        return self._events.is_idle()

    def when_idle(self, callback: Callable[[], object]) -> None:
        """Calls back once when they are, or when a write has failed."""
        self._events.when_idle(self, callback)

    async def drain(self) -> None:
        """Returns when they are."""
        await self._events.drain()
