"""Connections over HTTP: pipelining, other protocols, clients that go away, the limit, and what a drain does."""

import asyncio
import contextlib
import json
import resource
import socket
import ssl

import httpx2
import pytest
from certificates import Authority
from pagewire_router.http_front import body as bodies
from pagewire_router.http_front import connection, http_server
from pagewire_router.http_front.connection_limit import MAX_REFUSED, OTHER_FILES, allowed_connections

ASK = {"model": "tiny", "prompt": "Hello", "max_tokens": 3}
VERSION = b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n"


def post(fields, *headers: bytes, path: bytes = b"/v1/completions", version: bytes = b"1.1") -> bytes:
    """A request."""
    content = json.dumps(fields).encode()
    kinds = (
        () if any(header.startswith(b"content-type") for header in headers) else (b"content-type: application/json",)
    )
    given = (b"host: a", *kinds, *headers, b"content-length: %d" % len(content))
    return b"POST %s HTTP/%s\r\n" % (path, version) + b"\r\n".join(given) + b"\r\n\r\n" + content


async def answer_of(reader) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the next answer that has a content-length."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines if line)
    return int(status.split()[1]), headers, await reader.readexactly(int(headers[b"content-length"]))


async def rest_of(reader) -> bytes:
    """What comes until the server closes, or resets, the connection."""
    told = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            while data := await reader.read(1 << 16):
                told += data
    return told


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_clients_that_offer_another_protocol_are_served_in_this_one(serve_http):
    """Java's client offers HTTP/2 with every first request, and its body follows at once."""
    offers = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQ")
    async with serve_http() as front:
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(post(ASK, *offers) + VERSION)
        status, _, told = await answer_of(reader)
        assert status == 200
        assert json.loads(told)["usage"]["completion_tokens"] == 3
        assert (await answer_of(reader))[0] == 200
        head, _, content = post(ASK, *offers).partition(b"\r\n\r\n")
        for part in (head[:50], head[50:] + b"\r\n\r\n", content[:10], content[10:]):
            writer.write(part)
            await asyncio.sleep(0.02)
        assert (await answer_of(reader))[0] == 200
        writer.write(b"GET /version HTTP/1.1\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n")
        assert (await answer_of(reader))[1][b"connection"] == b"close"
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await answer_of(reader))[0] == 400
        writer.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_behind_further_requests_is_noticed(serve_http, stream):
    async with serve_http(step_s=0.05) as front:
        for further in (VERSION, post(ASK), b"GET /ver"):
            _, writer = await asyncio.open_connection(*front.address)
            writer.write(post({**ASK, "max_tokens": 200, "stream": stream}))
            await until(lambda: front.runner.tasks)
            writer.write(further)
            await asyncio.sleep(0.05)
            writer.transport.abort()
            await until(lambda: not front.runner.tasks)
        assert len(front.runner.aborted) == 3


async def test_what_is_sent_ahead_of_an_answer_is_bounded(serve_http):
    async with serve_http(step_s=0.05) as front:
        for further in (VERSION * 5_000, post({"prompt": "a" * 200_000})):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(post({**ASK, "max_tokens": 200, "stream": True}))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(further)
            assert b"HTTP/1.1" not in await rest_of(reader)  # Nothing is written into the middle of the stream.
            await until(lambda: not front.runner.tasks)
            writer.close()
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(VERSION * connection.MAX_PIPELINED)
        for _ in range(connection.MAX_PIPELINED):
            assert (await answer_of(reader))[0] == 200
        writer.close()


async def test_a_broken_request_ahead_of_an_answer_ends_the_connection_alone(serve_http):
    async with serve_http(step_s=0.02) as front:
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(post({**ASK, "max_tokens": 200, "stream": True}))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\0\0\0\r\n\r\n")
        assert b"HTTP/1.1" not in await rest_of(reader)
        writer.close()
        await until(lambda: not front.runner.tasks)


async def test_empty_lines_do_not_keep_a_connection(serve_http, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.2)
    async with serve_http() as front:
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(VERSION)
        await answer_of(reader)
        writer.write(b"\r\n")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_at_the_limit_connections_without_a_request_make_room(serve_http):
    async with serve_http(config={"http_max_connections": 4}, step_s=0.02) as front:
        held = [await asyncio.open_connection(*front.address) for _ in range(4)]
        held[1][1].write(b"GET /version HTTP/1.1\r\n")
        for reader, _ in held[:2]:
            fresh_reader, fresh = await asyncio.open_connection(*front.address)
            fresh.write(post({**ASK, "max_tokens": 200, "stream": True}))
            await fresh_reader.readuntil(b"\r\n\r\n")
            assert await rest_of(reader) == b""
            held.append((fresh_reader, fresh))
        assert len(front.connections) == 4
        for _, writer in held:
            writer.close()
        await until(lambda: not front.connections)


async def test_beyond_the_limit_clients_are_told_to_come_back(serve_http, monkeypatch):
    monkeypatch.setattr("pagewire_router.http_front.connection_limit.MAX_REFUSED", 1)
    async with serve_http(config={"http_max_connections": 2}, step_s=0.02) as front:
        held = [await asyncio.open_connection(*front.address) for _ in range(2)]
        for reader, writer in held:
            writer.write(post({**ASK, "max_tokens": 200, "stream": True}))
            await reader.readuntil(b"\r\n\r\n")
        reader, writer = await asyncio.open_connection(*front.address)
        await until(lambda: len(front.connections) == 3)
        further_reader, further = await asyncio.open_connection(*front.address)
        assert await rest_of(further_reader) == b""
        further.close()
        writer.write(post(ASK, path=b"/v1/messages") + VERSION)
        status, headers, told = await answer_of(reader)
        assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
        assert json.loads(told)["error"]["type"] == "overloaded_error"
        assert await reader.read() == b""
        writer.close()
        held[0][1].close()
        await until(lambda: len(front.connections) == 1)
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(VERSION)
        assert (await answer_of(reader))[0] == 200
        for _, each in (*held, (reader, writer)):
            each.close()


async def test_a_drain_has_clients_go_elsewhere(serve_http):
    async with serve_http(step_s=0.02, config={"drain_grace_s": 10}) as front:
        (idle, idle_writer), (reader, writer) = [await asyncio.open_connection(*front.address) for _ in range(2)]
        idle_writer.write(VERSION)
        await answer_of(idle)
        writer.write(post({**ASK, "max_tokens": 20}))
        await until(lambda: front.runner.tasks)
        draining = asyncio.create_task(front.router.server.drain())
        assert await idle.read() == b""
        status, headers, _ = await answer_of(reader)
        assert status == 200
        fresh, fresh_writer = await asyncio.open_connection(*front.address)
        fresh_writer.write(VERSION)
        status, headers, _ = await answer_of(fresh)
        assert (status, headers[b"connection"]) == (200, b"close")
        await draining
        for each in (idle_writer, writer, fresh_writer):
            each.close()


async def test_large_bodies_of_requests_that_wait_are_bounded(serve_http, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_HELD_BYTES", 1_000_000)
    async with serve_http(step_s=0.02) as front, httpx2.AsyncClient() as http:
        url = f"{front.base_url}/v1/completions"
        large = {**ASK, "max_tokens": 60, "user": "a" * 400_000}
        first = asyncio.create_task(http.post(url, json=large))
        await until(lambda: front.runner.tasks)
        refused = await http.post(url, json=large)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await http.post(url, json=ASK)).status_code == 200
        assert (await first).status_code == 200
        assert (await http.post(url, json={**large, "max_tokens": 3})).status_code == 200


async def test_a_client_of_http_1_0_gets_streams_without_chunks(serve_http):
    async with serve_http() as front:
        for stream in (True, False):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(post({**ASK, "stream": stream}, version=b"1.0"))
            head, _, content = (await rest_of(reader)).partition(b"\r\n\r\n")
            assert b"connection: close" in head
            assert b"chunked" not in head
            assert content.startswith(b"data: {" if stream else b"{")
            assert content.endswith(b"\n\ndata: [DONE]\n\n" if stream else b"}")
            writer.close()
        assert front.runner.aborted == []


async def test_bodies_that_would_be_misread_are_refused(serve_http):
    async with serve_http() as front:
        for headers, expected in (
            ((b"content-type: application/json; charset=latin-1",), 415),
            ((b'content-type: application/json; charset="UTF-8"',), 200),
        ):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(post(ASK, *headers))
            assert (await answer_of(reader))[0] == expected
            writer.close()
        reader, writer = await asyncio.open_connection(*front.address)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        writer.write(head + b"transfer-encoding: gzip, chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n")
        status, _, told = await answer_of(reader)
        assert (status, json.loads(told)["error"]["code"]) == (400, "unsupported_transfer_encoding")
        writer.close()


async def test_a_client_that_waits_with_its_body_is_told_to_go_on_or_loses_the_connection(serve_http):
    async with serve_http() as front:
        head, _, content = post(ASK, b"expect: 100-continue").partition(b"\r\n\r\n")
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(content)
        assert (await answer_of(reader))[0] == 200
        writer.write(head.replace(b"application/json", b"text/plain") + b"\r\n\r\n")
        status, headers, _ = await answer_of(reader)
        assert (status, headers[b"connection"]) == (415, b"close")
        assert await rest_of(reader) == b""
        writer.close()


async def test_keys_may_have_any_character(serve_http, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("schl\u00fcssel\n")
    async with serve_http(config={"api_keys": str(keys)}) as front:
        for sent, expected in (("schl\u00fcssel".encode(), 200), ("schl\u00fcssel".encode("latin-1"), 401)):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(post(ASK, b"authorization: Bearer " + sent))
            assert (await answer_of(reader))[0] == expected
            writer.close()


async def test_what_is_no_tls_is_cut_off_and_keeps_nobody_waiting(serve_http, monkeypatch, tmp_path):
    monkeypatch.setattr(http_server, "HANDSHAKE_TIMEOUT_S", 0.3)
    authority = Authority(tmp_path)
    server = authority.issue("server", "127.0.0.1")
    async with serve_http(config={"tls_cert": server.cert, "tls_key": server.key}) as front:
        silent, silent_writer = await asyncio.open_connection(*front.address)
        for garbage in (VERSION, b"\x16\x03\x01\x02\x00" + b"a" * 600, b"\0" * 10_000):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(garbage)
            assert b"HTTP" not in await rest_of(reader)
            writer.close()
        async with httpx2.AsyncClient(verify=ssl.create_default_context(cafile=authority.ca)) as http:
            assert (await http.get(f"{front.base_url}/version")).status_code == 200
        assert await rest_of(silent) == b""
        silent_writer.close()


@pytest.mark.parametrize(
    ("soft", "hard", "is_refused", "expected"),
    [
        (1 << 20, 1 << 20, False, 10_000),
        (1024, 1 << 20, False, 10_000),
        (1024, resource.RLIM_INFINITY, False, 10_000),
        (1024, 4096, False, 4096 - OTHER_FILES - MAX_REFUSED),
        (1024, 1024, False, 256),
        (4096, resource.RLIM_INFINITY, True, 4096 - OTHER_FILES - MAX_REFUSED),
    ],
)
def test_connections_are_no_more_than_open_files_allow(monkeypatch, caplog, soft, hard, is_refused, expected):
    def set_limit(_kind, limits):
        if is_refused or limits[0] > hard != resource.RLIM_INFINITY:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert allowed_connections(10_000) == expected
    assert ("ulimit" in caplog.text) == (expected < 10_000)


@pytest.mark.parametrize("is_tls", [False, True])
async def test_streams_of_one_connection_follow_each_other_whole(serve_http, tmp_path, is_tls):
    """Each chunk has the length that it says, whatever was sent ahead."""
    config, context = {}, None
    if is_tls:
        authority = Authority(tmp_path / "authority")
        server = authority.issue("server", "127.0.0.1")
        config = {"tls_cert": server.cert, "tls_key": server.key}
        context = ssl.create_default_context(cafile=authority.ca)
    async with serve_http(config=config) as front:
        reader, writer = await asyncio.open_connection(*front.address, ssl=context)
        writer.write(post({**ASK, "max_tokens": 40, "stream": True}) * 2)
        async with asyncio.timeout(20):
            for _ in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"transfer-encoding: chunked" in head.lower()
                told = []
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    told.append(await reader.readexactly(size))
                    assert await reader.readexactly(2) == b"\r\n"
                assert await reader.readexactly(2) == b"\r\n"
                assert len(told) > 2
                assert all(events.startswith(b"data: ") and events.endswith(b"\n\n") for events in told)
                assert told[-1].endswith(b"data: [DONE]\n\n")
        writer.close()


async def test_parts_of_an_answer_are_written_at_once_until_the_client_stops_reading(serve_http, monkeypatch):
    """What the transport refuses to take at once goes through uvicorn's send(), which waits for the client."""
    taken = []

    def noted(cycle, data):
        taken.append(write_now(cycle, data))
        return taken[-1]

    write_now = connection._write_now
    monkeypatch.setattr(connection, "_write_now", noted)
    async with serve_http() as front:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(front.address)
            reader, writer = await asyncio.open_connection(sock=client, limit=1 << 24)
            writer.transport.pause_reading()
            writer.write(post({**ASK, "max_tokens": 250, "n": 64, "stream": True, "return_token_ids": True}))
            await until(lambda: False in taken)
            assert taken[0]
            writer.transport.resume_reading()
            async with asyncio.timeout(20):
                told = await reader.readuntil(b"data: [DONE]\n\n")
            writer.close()
    assert told.count(b'"finish_reason":"length"') == 64
