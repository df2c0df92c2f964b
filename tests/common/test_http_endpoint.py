"""The HTTP port: the pages of a process, and requests for anything else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import pytest
from pagewire_common.health_state import HealthState
from pagewire_common.http_endpoint import MAX_HEADER_BYTES, HttpEndpoint, process_pages


@dataclass
class Process:
    """What the pages tell of."""

    is_alive: bool = True
    state: HealthState = HealthState.IDLE
    port: int = 0

    async def ask(self, request: bytes) -> tuple[int, str, str]:
        """Status, headers and body; status 0 for no answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        answer = (await reader.read()).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]) if head else 0, head, body

    async def get(self, path: str) -> tuple[int, str]:
        status, _, body = await self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return status, body


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    process = Process()
    pages = process_pages(
        render_metrics=lambda: b"up 1\n", is_alive=lambda: process.is_alive, state=lambda: process.state
    )
    endpoint = HttpEndpoint(pages)
    process.port = await endpoint.start("127.0.0.1", 0)
    yield process
    await endpoint.stop()


async def test_probes_are_told_the_state_of_the_process(process: Process) -> None:
    assert await process.get("/healthz") == (200, "alive\n")
    assert await process.get("/readyz?x=1") == (200, "ready: idle\n")
    process.state = HealthState.BUSY
    assert await process.get("/readyz") == (200, "ready: busy\n")
    for state in HealthState.LOADING, HealthState.STALLED, HealthState.FAILED:
        process.state = state
        assert await process.get("/readyz") == (503, f"not ready: {state}\n")
    assert await process.get("/healthz") == (200, "alive\n")
    process.is_alive = False
    assert await process.get("/healthz") == (503, "not alive\n")


async def test_metrics_have_the_content_type_that_prometheus_expects(process: Process) -> None:
    status, head, body = await process.ask(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert (status, body) == (200, "up 1\n")
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in head


async def test_head_has_the_header_alone(process: Process) -> None:
    status, head, body = await process.ask(b"HEAD /readyz HTTP/1.1\r\n\r\n")
    assert (status, body) == (200, "")
    assert "Content-Length: 12\r\n" in head


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /secret HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\xff\x00\r\n\r\n", 400),
    ],
    ids=["path", "method", "not HTTP"],
)
async def test_other_requests_are_turned_away(process: Process, request_bytes: bytes, expected: int) -> None:
    assert (await process.ask(request_bytes))[0] == expected


async def test_a_header_that_is_too_large_is_refused_and_the_next_client_is_served(process: Process) -> None:
    # Where more is on its way than the server reads, its answer may be lost with the connection.
    with contextlib.suppress(ConnectionError):
        assert (await process.ask(b"GET /" + b"x" * 2 * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n"))[0] in (0, 431)
    _, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.close()
    assert await process.get("/healthz") == (200, "alive\n")


async def test_a_client_that_never_speaks_does_not_keep_the_process(process: Process) -> None:
    endpoint = HttpEndpoint({})
    port = await endpoint.start("127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(10):
        await endpoint.stop()
    writer.close()


async def test_a_port_that_is_taken_cannot_be_had(process: Process) -> None:
    with pytest.raises(OSError, match="in use"):
        await HttpEndpoint({}).start("127.0.0.1", process.port)


async def test_a_unix_socket_has_the_same_pages(process: Process, tmp_path: Path) -> None:
    endpoint = HttpEndpoint({"/metrics": lambda: (HTTPStatus.OK, "text/plain", b"up 1\n")})
    path = str(tmp_path / "metrics.sock")
    await endpoint.start_unix(path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert (await reader.read()).endswith(b"\r\n\r\nup 1\n")
    writer.close()
    await endpoint.stop()
