"""uvicorn within the router's event loop: listens, drains and stops."""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from pagewire_router.http_front.connection import Connection
from pagewire_router.http_front.connection_limit import ConnectionLimit
from pagewire_router.metrics.http_metrics import HttpMetrics

KEEP_ALIVE_S = 75
"""A connection without requests is closed after this time: later than clients close theirs."""
HANDSHAKE_TIMEOUT_S = 10.0
"""A TLS handshake must be complete after this time."""
BACKLOG = 4096
STOP_GRACE_S = 1
"""Time for the last events of streams whose requests have ended."""


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the router."""

    def __init__(self, config: uvicorn.Config, limit: ConnectionLimit, metrics: HttpMetrics) -> None:
        super().__init__(config)
        self._limit = limit
        self._metrics = metrics

    async def listen(self, listening: socket.socket) -> None:
        """Begins to accept connections. To be called before serve()."""
        self.config.load()
        make = functools.partial(
            Connection,
            config=self.config,
            server_state=self.server_state,
            app_state={},
            limit=self._limit,
            metrics=self._metrics,
        )
        tls = self.config.ssl
        timeout_s = None if tls is None else HANDSHAKE_TIMEOUT_S
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(make, sock=listening, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=timeout_s)
        ]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by serve(), of a server that listens."""
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves one ASGI application on one port."""

    def __init__(
        self,
        app: Callable[..., Any],
        tls: ssl.SSLContext | None,
        limit: ConnectionLimit,
        metrics: HttpMetrics,
    ) -> None:
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
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_GRACE_S,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        )
        self._limit = limit
        self._server = _Server(config, limit, metrics)
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which the system picks for 0. Raises OSError."""
        listening = _bind(host, port)
        await self._server.listen(listening)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]), name="http")
        bound_port: int = listening.getsockname()[1]
        return bound_port

    def drain(self) -> None:
        """Closes the connections that have no request, so that their clients go elsewhere."""
        self._limit.close_idle()

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
