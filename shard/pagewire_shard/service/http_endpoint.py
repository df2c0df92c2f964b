"""GET /metrics, /healthz and /readyz: three fixed pages for Prometheus and Kubernetes, no web framework."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

MAX_HEAD_BYTES = 16 << 10
REQUEST_TIMEOUT_S = 30.0
"""A client that has not sent its request by then is dropped. A busy machine takes seconds to read one, too."""


class HttpEndpoint:
    """Answers one request per connection."""

    def __init__(
        self, is_alive: Callable[[], bool], is_ready: Callable[[], bool], render_metrics: Callable[[], bytes]
    ) -> None:
        self._is_alive = is_alive
        self._is_ready = is_ready
        self._render_metrics = render_metrics
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which the system picks for 0. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # A client that does not speak HTTP, or went away, gets no answer.
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n")
        match path:
            case b"/metrics":
                return _response(HTTPStatus.OK, self._render_metrics(), "text/plain; version=0.0.4; charset=utf-8")
            case b"/healthz" if self._is_alive():
                return _response(HTTPStatus.OK, b"alive\n")
            case b"/healthz":
                return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"not alive\n")
            case b"/readyz" if self._is_ready():
                return _response(HTTPStatus.OK, b"ready\n")
            case b"/readyz":
                return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
            case _:
                return _response(HTTPStatus.NOT_FOUND, b"try /metrics, /healthz or /readyz\n")


def _response(status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
