"""What /metrics says of requests and connections over HTTP."""

import asyncio
import contextlib
import json
import socket

import httpx2
import pytest
from metrics_page import samples_of
from pagewire_router.http_front import connection as http_connection

ROUTE = "/v1/completions"
ASK = {"prompt": "Hello", "max_tokens": 3}
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


def samples(front) -> dict[tuple[str, ...], float]:
    return samples_of(front.router.server._metrics.render().decode())


async def until(front, name: tuple[str, ...], value: float) -> None:
    async with asyncio.timeout(20):
        while samples(front)[name] != value:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_are_counted_timed_and_measured(serve_http, stream):
    async with serve_http() as front, httpx2.AsyncClient() as http:
        before = samples(front)
        assert before["pagewire_http_requests_total", ROUTE, "200"] == 0, "there from the start"
        body = json.dumps({**ASK, "stream": stream}).encode()
        answer = await http.post(front.base_url + ROUTE, content=body, headers={"content-type": "application/json"})
        assert (await http.get(f"{front.base_url}/nothing")).status_code == 404
        found = samples(front)
        assert found["pagewire_http_requests_total", ROUTE, "200"] == 1
        assert found["pagewire_http_requests_total", "other", "404"] == 1
        assert found["pagewire_http_requests_open", ROUTE] == 0
        assert found["pagewire_http_request_latency_seconds_count", ROUTE] == 1
        assert 0 < found["pagewire_http_request_latency_seconds_sum", ROUTE] < 60
        assert found["pagewire_http_received_bytes_total", ROUTE] == len(body)
        assert found["pagewire_http_sent_bytes_total", ROUTE] == len(answer.content)
        assert found["pagewire_http_connections_open",] == 1
    await until(front, ("pagewire_http_connections_open",), 0)


async def test_requests_that_run_are_open_and_those_whose_client_goes_end_with_499(serve_http):
    async with serve_http(step_s=0.02, script=lambda request: [40] * 200) as front:
        async with httpx2.AsyncClient() as http:
            body = {**ASK, "max_tokens": 200}
            asking = asyncio.create_task(http.post(front.base_url + ROUTE, json=body))
            await until(front, ("pagewire_http_requests_open", ROUTE), 1)
            asking.cancel()
        await until(front, ("pagewire_http_requests_total", ROUTE, "499"), 1)
        assert samples(front)["pagewire_http_requests_open", ROUTE] == 0


async def test_clients_that_are_cut_off_are_counted_by_reason(serve_http, monkeypatch):
    async with serve_http(config={"http_max_body_bytes": 1000}) as front:
        # One limit at a time: on a busy machine another one could be met first.
        for reason, limit_s, begun in (
            ("late_head", "HEAD_TIMEOUT_S", b"POST /v1"),
            ("large_head", "", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000),
            ("unread_body", "LINGER_S", HEAD % 1_000_000),
            ("sent_ahead", "", b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n" * 200),
        ):
            monkeypatch.undo()
            if limit_s:
                monkeypatch.setattr(http_connection, limit_s, 0.2)
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(begun)
            await until(front, ("pagewire_http_connections_cut_total", reason), 1)
            # The others must not come too late on a busy machine.
            monkeypatch.setattr(http_connection, "HEAD_TIMEOUT_S", 30)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()
        monkeypatch.undo()
        monkeypatch.setattr(http_connection, "MAX_PIPELINED", 1000)
        monkeypatch.setattr(http_connection, "STALL_TIMEOUT_S", 0.2)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(front.address)
            _, writer = await asyncio.open_connection(sock=connection)
            writer.transport.pause_reading()
            writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 500)
            await until(front, ("pagewire_http_connections_cut_total", "stalled_reader"), 1)
            writer.close()
        found = samples(front)
        reasons = {name[1]: value for name, value in found.items() if name[0] == "pagewire_http_connections_cut_total"}
        assert reasons == {"late_head": 1, "large_head": 1, "unread_body": 1, "sent_ahead": 1, "stalled_reader": 1}
