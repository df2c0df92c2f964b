"""One connection over HTTP/1: uvicorn's protocol, with bounds on what its client may make it hold, and for how long."""

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pagewire_router.http_front.connection_limit import ConnectionLimit
from pagewire_router.http_front.error_bodies import openai_body
from pagewire_router.http_front.errors import HttpError
from pagewire_router.http_front.event_stream import WRITE_NOW
from pagewire_router.metrics.http_metrics import (
    LARGE_HEAD,
    LATE_HEAD,
    SENT_AHEAD,
    STALLED_READER,
    UNREAD_BODY,
    HttpMetrics,
)

HEAD_TIMEOUT_S = 30.0
"""The head of a request must be complete after this time."""
LINGER_S = 5.0
"""What is left of a request whose answer has ended is read and dropped for this time, so that its client reads the
answer; then the connection is closed."""
STALL_TIMEOUT_S = 120.0
"""A connection whose client reads nothing of what waits for it is closed after this time, or after twice as long."""
MAX_HEAD_BYTES = 64 << 10
"""Largest head of a request, and largest trailer of its body."""
MAX_READ_BYTES = 256 << 10
"""Most bytes that the event loop reads at a time."""
MAX_PIPELINED = 64
"""Most requests of a connection that may wait for the answer to an earlier one."""
MAX_PIPELINED_BYTES = 64 << 10
"""Most bytes of their bodies."""
TOO_LARGE = "The head of the request is too large."
INVALID = "This is no valid request of HTTP/1.1."
TOO_MANY = "Too much was sent ahead of the answer to an earlier request."
_UPGRADES = (b"upgrade", b"http2-settings")
"""Headers by which a client offers to go on in another protocol; Connection names them."""


class _Refused(Exception):
    """Raised through the parser: what the client sends is not taken. The message says why."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which bounds neither what its parser holds nor how long clients may take."""

    _head_timer: asyncio.TimerHandle | None = None
    """Runs while a head is read."""
    _linger_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _num_unread = 0
    """Bytes that waited for the client when _stall_timer began."""
    _has_read = False
    """The client has read most of them since."""
    _num_head_bytes = 0
    """Bytes of the headers, or of the trailers, that the parser has found."""
    _num_held = 0
    """Bytes that have come since the parser has last told of anything: it may hold them all."""
    _num_pipelined_bytes = 0
    """Bytes of bodies that have come while an earlier request was being answered."""
    _answering: RequestResponseCycle | None = None
    """The request that is answered, or was last."""

    def __init__(self, *args: Any, limit: ConnectionLimit, metrics: HttpMetrics, **options: Any) -> None:
        """limit: bounds the number of all connections."""
        super().__init__(*args, **options)
        self._limit = limit
        self._metrics = metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._metrics.num_connections += 1
        if self._limit.is_beyond(self):
            self.app = self._limit.refuse
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._metrics.num_connections -= 1
        self._limit.on_lost(self)
        self._stop_head_timer()
        for timer in (self._linger_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        answering = self._answering
        if answering is not None and not answering.response_complete:
            # uvicorn tells the last request alone that its client has gone; others may wait behind this one.
            answering.disconnected = True
            answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.transport.is_closing():
            return
        self._num_held += len(data)
        self._unset_keepalive_if_required()
        if not self.is_answering:
            self._start_head_timer()
        self._feed(data)
        # The parser copies all that it holds of a header whenever more of it comes.
        if self._num_held > MAX_HEAD_BYTES + MAX_READ_BYTES and not self.transport.is_closing():
            self._metrics.num_cut[LARGE_HEAD] += 1
            self.send_400_response(TOO_LARGE)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self.send_400_response(str(error.__context__) if isinstance(error.__context__, _Refused) else INVALID)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Goes on in HTTP/1.1 where a client has offered another protocol.

        The parser gives up a request behind such a head, with its body. Java's client offers HTTP/2 in this way.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response(INVALID)
            return
        head = [b"%s %s HTTP/1.1\r\n" % (method, self.url)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(option for option in value.split(b",") if option.strip().lower() not in _UPGRADES)
            if value and name not in _UPGRADES:
                head.append(b"%s: %s\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"".join((*head, b"\r\n", rest)))

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request, and closes. Where an answer is on its way the connection is closed alone."""
        answering = self._answering
        if answering is not None and self.is_answering and (answering.response_started or answering is not self.cycle):
            self.transport.close()
        if self.transport.is_closing():
            return
        body = openai_body(HttpError(400, msg, code="invalid_http"), "")
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        self.transport.write(head + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._has_read = True
        super().resume_writing()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._num_head_bytes = self._num_held = 0
        self._start_head_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Trailers are dropped: nobody reads them, and they are no headers."""
        self._count(len(name) + len(value))
        if self._head_timer is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._num_head_bytes = self._num_held = 0
        self._stop_head_timer()
        if self.parser.should_upgrade():
            return  # It comes again, see _ignore_upgrade().
        if len(self.pipeline) >= MAX_PIPELINED:
            self._metrics.num_cut[SENT_AHEAD] += 1
            raise _Refused(TOO_MANY)
        super().on_headers_complete()
        if self.pipeline:
            # Whoever does not read does not notice either that the client has gone.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._num_held = 0
        if self.pipeline:
            self._num_pipelined_bytes += len(body)
            if self._num_pipelined_bytes > MAX_PIPELINED_BYTES:
                self._metrics.num_cut[SENT_AHEAD] += 1
                raise _Refused(TOO_MANY)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._num_held = 0
        if self.parser.should_upgrade():
            return
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Called when an answer has been given to the transport."""
        is_unread = self.cycle.more_body and not self.pipeline
        super().on_response_complete()
        if not self.is_answering:
            self._num_pipelined_bytes = 0
            self._limit.on_idle(self)
        if is_unread and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER_S, self._cut, UNREAD_BODY)
        self._start_stall_timer()

    @property
    def is_answering(self) -> bool:
        """Whether a request is being read or answered whose head is complete."""
        return self._answering is not None and not self._answering.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        self._limit.on_busy(self)
        cycle.scope["extensions"] = {WRITE_NOW: {"write": functools.partial(_write_now, cycle)}}
        if cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _count(self, num_bytes: int) -> None:
        self._num_held = 0
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._metrics.num_cut[LARGE_HEAD] += 1
            raise _Refused(TOO_LARGE)

    def _cut(self, reason: str) -> None:
        """Closes the connection, if nothing has begun to close it."""
        if not self.transport.is_closing():
            self._metrics.num_cut[reason] += 1
            self.transport.close()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._cut, LATE_HEAD)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_stall_timer(self) -> None:
        if self._stall_timer is None and (num_unread := self.transport.get_write_buffer_size()):
            self._num_unread, self._has_read = num_unread, False
            self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self._check_stall)

    def _check_stall(self) -> None:
        self._stall_timer = None
        if not self._has_read and self.transport.get_write_buffer_size() >= self._num_unread:
            self._metrics.num_cut[STALLED_READER] += 1
            self.transport.abort()
        else:
            self._start_stall_timer()


def _write_now(cycle: RequestResponseCycle, data: bytes) -> bool:
    """Gives part of an answer's body to the transport; returns False, and does nothing, where send() must do so.

    This is what uvicorn's send() does with it, without a message and a coroutine for each part. send() also waits for
    clients that do not read, and writes to clients of HTTP/1.0.
    """
    assert data, "an empty chunk would end the answer"
    if cycle.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


def _without_chunks(app: Callable[..., Any], cycle: RequestResponseCycle) -> Callable[..., Any]:
    """The application for a client of HTTP/1.0, which does not know chunks: the end of the connection ends a stream."""

    async def run(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        async def send_plain(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                if b"content-length" not in dict(message["headers"]):
                    cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
            elif not message.get("more_body") and not cycle.chunked_encoding:
                cycle.expected_content_length = len(message["body"])
            await send(message)

        await app(scope, receive, send_plain)

    return run
