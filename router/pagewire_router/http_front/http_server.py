"""uvicorn within the router's event loop: listens, bounds what connections may hold and how long, and stops."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pagewire_router.metrics.http_metrics import LARGE_HEAD, LATE_HEAD, STALLED_READER, UNREAD_BODY, HttpMetrics

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
TOO_LARGE = "The head of the request is too large."
KEEP_ALIVE_S = 75
"""A connection without requests is closed after this time: later than clients close theirs."""
BACKLOG = 4096
STOP_GRACE_S = 1
"""Time for the last events of streams whose requests have ended."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which bounds neither what its parser holds nor how long clients may take."""

    metrics: HttpMetrics
    """Set by a subclass for each server."""
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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.metrics.num_connections += 1
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.metrics.num_connections -= 1
        self._stop_head_timer()
        for timer in (self._linger_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.transport.is_closing():
            return
        self._num_held += len(data)
        super().data_received(data)
        # The parser copies all that it holds of a header whenever more of it comes.
        if self._num_held > MAX_HEAD_BYTES + MAX_READ_BYTES and not self.transport.is_closing():
            self._refuse()

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
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._num_held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._num_held = 0
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Called when an answer has been given to the transport."""
        is_unread = self.cycle.more_body and not self.pipeline
        super().on_response_complete()
        if is_unread and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER_S, self._cut, UNREAD_BODY)
        self._start_stall_timer()

    def _count(self, num_bytes: int) -> None:
        self._num_held = 0
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self.metrics.num_cut[LARGE_HEAD] += 1
            raise ValueError(TOO_LARGE)  # uvicorn answers 400 and closes.

    def _cut(self, reason: str) -> None:
        """Closes the connection, if nothing has begun to close it."""
        if not self.transport.is_closing():
            self.metrics.num_cut[reason] += 1
            self.transport.close()

    def _refuse(self) -> None:
        self.metrics.num_cut[LARGE_HEAD] += 1
        if self._head_timer is not None:
            self.send_400_response(TOO_LARGE)
        else:
            self.transport.close()  # An answer may have begun.

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
            self.metrics.num_cut[STALLED_READER] += 1
            self.transport.abort()
        else:
            self._start_stall_timer()


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the router."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves one ASGI application on one port."""

    def __init__(self, app: Callable[..., Any], tls: ssl.SSLContext | None, metrics: HttpMetrics) -> None:
        """tls: None: no TLS."""
        config = uvicorn.Config(
            app,
            http=type("Connection", (Connection,), {"metrics": metrics}),
            ws="none",
            lifespan="off",
            log_config=None,
            # What it would log are clients' malformed requests; failures of the application are logged there.
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_GRACE_S,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which the system picks for 0. Raises OSError."""
        listening = _bind(host, port)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]), name="http")
        await self._server.is_listening.wait()
        bound_port: int = listening.getsockname()[1]
        return bound_port

    async def stop(self) -> None:
        """Stops listening, gives answers a last moment, and closes all connections."""
        if self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        for connection in list(self._server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens. A second router on the same port must fail, not share its connections."""
    family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG, reuse_port=False)
