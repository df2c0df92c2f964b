"""uvicorn within the router's event loop: listens, bounds the head of requests in time and size, and stops."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 30.0
"""The head of a request must be complete after this time."""
MAX_HEAD_BYTES = 64 << 10
"""Largest head of a request."""
MAX_READ_BYTES = 256 << 10
"""Most bytes that the event loop reads at a time."""
TOO_LARGE = "The head of the request is too large."
KEEP_ALIVE_S = 75
"""A connection without requests is closed after this time: later than clients close theirs."""
BACKLOG = 4096
STOP_GRACE_S = 1
"""Time for the last events of streams whose requests have ended."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which bounds neither the time nor the size of a request's head."""

    _head_timer: asyncio.TimerHandle | None = None
    _num_head_bytes = 0
    """Bytes of the headers that the parser has found."""
    _num_received = 0
    """Bytes that have come since the head began, and up to MAX_READ_BYTES that came with its first ones."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if self._head_timer is not None and not self.transport.is_closing():
            # The parser keeps what has come of a header to itself.
            self._num_received += len(data)
            if self._num_received > MAX_HEAD_BYTES + MAX_READ_BYTES:
                self.send_400_response(TOO_LARGE)

    def on_message_begin(self) -> None:
        """See httptools."""
        self._num_head_bytes = self._num_received = 0
        self._start_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._stop_timer()
        super().on_headers_complete()

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise ValueError(TOO_LARGE)  # uvicorn answers 400 and closes.

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


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

    def __init__(self, app: Callable[..., Any], tls: ssl.SSLContext | None) -> None:
        """tls: None: no TLS."""
        config = uvicorn.Config(
            app,
            http=Connection,
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
