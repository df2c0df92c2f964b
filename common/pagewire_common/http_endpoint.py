"""The plain HTTP port: /metrics for Prometheus, /healthz and /readyz for probes. GET only, one request a connection."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from pagewire_common.health_state import HealthState

MAX_HEADER_BYTES = 16 * 1024
REQUEST_TIMEOUT_S = 30.0
"""A client that has not sent its request by then is dropped. A busy machine takes seconds to read one, too."""
METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TEXT_CONTENT_TYPE = "text/plain; charset=utf-8"

Page = Callable[[], tuple[HTTPStatus, str, bytes]]
"""Makes one page: status, content type, body."""


def process_pages(
    *, render_metrics: Callable[[], bytes], is_alive: Callable[[], bool], state: Callable[[], HealthState]
) -> dict[str, Page]:
    """The pages that every process has, by path."""
    return {
        "/metrics": lambda: (HTTPStatus.OK, METRICS_CONTENT_TYPE, render_metrics()),
        "/healthz": lambda: _probe_page(is_alive(), "alive" if is_alive() else "not alive"),
        "/readyz": lambda: _readiness_page(state()),
    }


def _readiness_page(state: HealthState) -> tuple[HTTPStatus, str, bytes]:
    return _probe_page(state.is_ready, f"{'ready' if state.is_ready else 'not ready'}: {state}")


def _probe_page(is_so: bool, text: str) -> tuple[HTTPStatus, str, bytes]:
    return HTTPStatus.OK if is_so else HTTPStatus.SERVICE_UNAVAILABLE, TEXT_CONTENT_TYPE, f"{text}\n".encode()


class HttpEndpoint:
    """Serves a few pages; each is made on request."""

    def __init__(self, pages: dict[str, Page]) -> None:
        """pages: by path, such as "/metrics"."""
        self._pages = pages
        self._servers: list[asyncio.Server] = []

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which the system picks for 0. Raises OSError."""
        server = await asyncio.start_server(self._answer, host, port, limit=MAX_HEADER_BYTES)
        self._servers.append(server)
        bound_port: int = server.sockets[0].getsockname()[1]
        return bound_port

    async def start_unix(self, path: str) -> None:
        """Listens on a Unix socket, too. Raises OSError."""
        self._servers.append(await asyncio.start_unix_server(self._answer, path, limit=MAX_HEADER_BYTES))

    async def stop(self) -> None:
        """Stops listening. Does not wait for connections, since a client may never send a request."""
        for server in self._servers:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                header = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(header))
                await writer.drain()
        except asyncio.LimitOverrunError:
            writer.write(_render(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TEXT_CONTENT_TYPE, b"header too large\n"))
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # The client is gone or never spoke.
        finally:
            writer.close()

    def _response(self, header: bytes) -> bytes:
        words = header.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _render(HTTPStatus.BAD_REQUEST, TEXT_CONTENT_TYPE, b"not an HTTP/1 request\n")
        if words[0] not in (b"GET", b"HEAD"):
            return _render(HTTPStatus.METHOD_NOT_ALLOWED, TEXT_CONTENT_TYPE, b"GET only\n")
        path = words[1].split(b"?", 1)[0].decode("latin-1")
        if path not in self._pages:
            known = ", ".join(sorted(self._pages))
            return _render(HTTPStatus.NOT_FOUND, TEXT_CONTENT_TYPE, f"pages: {known}\n".encode())
        response = _render(*self._pages[path]())
        return response if words[0] == b"GET" else response[: response.index(b"\r\n\r\n") + 4]


def _render(status: HTTPStatus, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
