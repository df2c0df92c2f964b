"""What the HTTP front does around its routes: statuses, keys, TLS, limits, slow clients, draining."""

import asyncio
import json
import socket
import ssl
from pathlib import Path

import httpx2
import openai
import pytest
from certificates import Authority
from pagewire_router.config import RouterConfig
from pagewire_router.errors import (
    DeadlineExceeded,
    FieldViolation,
    GrammarFailed,
    GrammarTooCostly,
    QueueFull,
    Unavailable,
)
from pagewire_router.http_front import connection as http_connection
from pagewire_router.server import RouterServer, ServerError

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
ASK = {"model": "tiny", "prompt": "Hello", "max_tokens": 3}


@pytest.fixture
async def http():
    async with httpx2.AsyncClient() as client:
        yield client


async def test_probes_need_no_key_and_say_if_it_serves(serve_http, http, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    async with serve_http(config={"api_keys": str(keys)}) as front:
        assert (await http.get(f"{front.base_url}/health")).status_code == 200
        assert (await http.head(f"{front.base_url}/health")).status_code == 200
        assert "version" in (await http.get(f"{front.base_url}/version")).json()
        front.runner.is_ready = False
        assert (await http.get(f"{front.base_url}/health")).status_code == 503


async def test_until_there_are_shards_clients_are_told_to_come_back(new_runner, http):
    config = RouterConfig(shards=(), listen="127.0.0.1:0", http_port=0)
    server = RouterServer(config, new_runner())
    await server.start()
    try:
        url = f"http://{server.http_address}"
        answer = await http.post(f"{url}/v1/completions", json=ASK)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "unavailable"
        assert (await http.get(f"{url}/health")).status_code == 503
        await server.open()
        assert (await http.post(f"{url}/v1/completions", json=ASK)).status_code == 200
    finally:
        await server.stop()


async def test_a_port_that_is_taken_fails_the_start(serve_http, new_runner):
    async with serve_http() as front:
        port = int(front.base_url.rpartition(":")[2])
        server = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0", http_port=port), new_runner())
        with pytest.raises(ServerError, match="cannot serve HTTP on 127.0.0.1"):
            await server.start()
        await server.stop()


async def test_keys_of_both_kinds_are_checked(serve_http, http, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    async with serve_http(config={"api_keys": str(keys)}) as front:
        with pytest.raises(openai.AuthenticationError) as refused:
            await front.openai(api_key="wrong").models.list()
        assert refused.value.code == "invalid_api_key"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
        assert len((await front.openai(api_key="secret").models.list()).data) == 1
        told = await front.anthropic(api_key="secret").messages.create(
            model="tiny", max_tokens=2, messages=[{"role": "user", "content": "Hello"}]
        )
        assert told.stop_reason == "max_tokens"
        unknown = await http.post(f"{front.base_url}/v1/messages", json={}, headers={"x-api-key": "wrong"})
        assert unknown.json()["error"]["type"] == "authentication_error"
        assert unknown.status_code == 401


async def test_one_model_is_described_by_its_name(serve_http, http):
    async with serve_http() as front:
        client = front.openai()
        (listed,) = (await client.models.list()).data
        assert await client.models.retrieve("tiny") == listed
        with pytest.raises(openai.NotFoundError, match="'org/huge' is not served"):
            await client.models.retrieve("org/huge")
        assert (await http.get(f"{front.base_url}/v1/models/")).json()["error"]["code"] == "unknown_route"
        assert (await http.post(f"{front.base_url}/v1/models/tiny")).status_code == 405
        described = (await http.get(f"{front.base_url}/openapi.json")).json()["paths"]["/v1/models/{model}"]["get"]
        assert described["parameters"][0]["name"] == "model"


async def test_paths_methods_and_types_that_are_not_served(serve_http, http):
    async with serve_http(config={"http_max_body_bytes": 1000}) as front:
        url = front.base_url

        async def status(method, path, **options):
            answer = await http.request(method, f"{url}{path}", **options)
            assert answer.headers["x-request-id"]
            return answer.status_code

        json_type = {"content-type": "application/json"}
        assert await status("GET", "/v1/nothing") == 404
        assert await status("GET", "/v1/completions") == 405
        assert await status("DELETE", "/v1/models") == 405
        assert (await http.get(f"{url}/v1/completions")).headers["allow"] == "POST"
        assert await status("POST", "/v1/completions", content=b"{}", headers={"content-type": "text/plain"}) == 415
        assert await status("POST", "/v1/completions", content=b"{}") == 415
        gzipped = {**json_type, "content-encoding": "gzip"}
        assert await status("POST", "/v1/completions", content=b"{}", headers=gzipped) == 415
        for body in (b"", b"{", b"[]", b'{"prompt": NaN}', b"\xff", b'{"prompt": "\\ud800"}', b"[" * 900):
            assert await status("POST", "/v1/completions", content=body, headers=json_type) == 400, body
        long = json.dumps({**ASK, "prompt": "a" * 1000}).encode()
        assert await status("POST", "/v1/completions", content=long, headers=json_type) == 413

        async def chunks():
            for _ in range(20):
                yield b"a" * 100

        assert await status("POST", "/v1/completions", content=chunks(), headers=json_type) == 413
        assert await status("POST", "/v1/completions", json=ASK) == 200


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (QueueFull("full", retry_after_s=4.2), 429, "5"),
        (Unavailable("drains", retry_after_s=0.2), 503, "1"),
        (DeadlineExceeded("late"), 504, None),
    ],
)
async def test_refusals_have_their_status_and_say_when_to_come_back(serve_http, http, error, status, retry_after):
    async with serve_http(refusal=error) as front:
        for stream in (False, True):
            answer = await http.post(f"{front.base_url}/v1/completions", json={**ASK, "stream": stream})
            assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
            assert answer.json()["error"]["code"] == error.reason.lower()
            assert answer.json()["error"]["message"] == error.message
    page = front.router.server._metrics.render().decode()
    assert f'pagewire_http_requests_total{{route="/v1/completions",status="{status}"}} 2.0' in page


@pytest.mark.parametrize("kind", ["failed", "costly"])
async def test_grammars_that_cannot_be_served_are_faults_of_the_client(serve_http, http, kind):
    violation = FieldViolation("sampling_params.structured_outputs", "is too much")
    error = GrammarFailed([violation]) if kind == "failed" else GrammarTooCostly(violation)
    async with serve_http(refusal=error) as front:
        answer = await http.post(f"{front.base_url}/v1/completions", json={**ASK, "response_format": {"type": "text"}})
        assert answer.status_code == 400
        told = answer.json()["error"]
        assert (told["param"], told["message"]) == ("response_format", "response_format: is too much")


async def test_a_failure_of_ours_is_told_without_its_details(serve_http, http, caplog):
    async with serve_http() as front:
        front.runner.submit = None
        answer = await http.post(f"{front.base_url}/v1/completions", json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "TypeError" in caplog.text
    assert "TypeError" not in answer.text


async def test_request_ids_are_taken_and_given(serve_http, http):
    async with serve_http() as front:
        url = f"{front.base_url}/v1/completions"
        answer = await http.post(url, json=ASK, headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"
        assert answer.json()["id"] == "cmpl-mine"
        answer = await http.post(url, json=ASK)
        assert len(answer.headers["x-request-id"]) == 32
        slow = {**ASK, "request_id": "one", "max_tokens": 200}
        front.runner.step_s = 0.05
        first = asyncio.create_task(http.post(url, json=slow))
        while len(front.runner.requests) < 3:
            await asyncio.sleep(0.01)
        assert (await http.post(url, json=slow)).status_code == 409
        first.cancel()


async def test_other_origins_may_call_if_they_are_listed(serve_http, http):
    ours, others = {"origin": "https://a.example"}, {"origin": "https://b.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    async with serve_http(config={"http_cors_origins": ("https://a.example",)}) as front:
        url = f"{front.base_url}/v1/completions"
        allowed = await http.options(url, headers={**ours, **asks})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert allowed.headers["access-control-allow-headers"] == "content-type"
        answer = await http.post(url, json=ASK, headers=ours)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        for refused in (
            await http.options(url, headers={**others, **asks}),
            await http.post(url, json=ASK, headers=others),
        ):
            assert "access-control-allow-origin" not in refused.headers
    async with serve_http() as front:
        answer = await http.options(f"{front.base_url}/v1/completions", headers={**ours, **asks})
        assert answer.status_code == 405


async def test_a_reader_that_stalls_holds_little_and_loses_nothing(serve_http):
    """Its tokens wait where they came out, and are told in few events when it reads again."""
    body = json.dumps({**ASK, "max_tokens": 250, "n": 64, "stream": True, "return_token_ids": True}).encode()
    async with serve_http() as front:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(front.address)
            reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 24)
            writer.transport.pause_reading()
            writer.write(HEAD % len(body) + body)
            async with asyncio.timeout(20):
                while not front.runner.requests or front.runner.tasks:
                    await asyncio.sleep(0.01)
                (served,) = front.connections
                assert served.transport.get_write_buffer_size() < 1 << 20
                writer.transport.resume_reading()
                told = await reader.readuntil(b"data: [DONE]\n\n")
            writer.close()
    token_ids = [0] * 64
    for line in told.split(b"\n"):
        if line.startswith(b'data: {"id"'):
            for choice in json.loads(line[6:])["choices"]:
                token_ids[choice["index"]] += len(choice["token_ids"])
    assert token_ids == [250] * 64


async def sent_until_closed(writer, data, *, pause_s):
    """How many times data was sent before the server closed the connection."""
    num_sent = 0
    async with asyncio.timeout(10):
        try:
            while True:
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(pause_s)
                num_sent += 1
        except ConnectionError:
            return num_sent


async def test_what_follows_a_body_is_bounded(serve_http):
    """A trailer or an extension of a chunk without an end: the parser would hold all of it."""
    head = b"GET /health HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serve_http() as front:
        for begun in (b"0\r\nx-a: ", b"1;"):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(head + begun)
            await reader.readuntil(b"\r\n\r\n")
            assert await sent_until_closed(writer, b"a" * (1 << 20), pause_s=0) < 64
            writer.close()


async def test_a_trailer_is_no_header(serve_http, http, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    body = json.dumps(ASK).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked"
    chunked = b"\r\n\r\n%x\r\n%s\r\n0\r\nauthorization: Bearer secret\r\n\r\n" % (len(body), body)
    async with serve_http(config={"api_keys": str(keys)}) as front:
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(head + chunked)
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"401"
        writer.close()


@pytest.mark.parametrize("status", [b"401", b"413"])
async def test_a_body_that_is_refused_does_not_come_for_ever(serve_http, monkeypatch, tmp_path, status):
    monkeypatch.setattr(http_connection, "LINGER_S", 0.2)
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    config = {"api_keys": str(keys)} if status == b"401" else {"http_max_body_bytes": 1000}
    async with serve_http(config=config) as front:
        reader, writer = await asyncio.open_connection(*front.address)
        writer.write(HEAD % 1_000_000)
        assert (await reader.readuntil(b"\r\n")).split()[1] == status
        assert await sent_until_closed(writer, b"a", pause_s=0.02) > 1
        assert front.connections == []
        writer.close()


async def test_answers_that_nobody_reads_are_given_up(serve_http, monkeypatch):
    monkeypatch.setattr(http_connection, "STALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(http_connection, "MAX_PIPELINED", 1000)
    async with serve_http() as front:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(front.address)
            _, writer = await asyncio.open_connection(sock=connection)
            writer.transport.pause_reading()
            writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 500)
            async with asyncio.timeout(20):
                while not front.connections:
                    await asyncio.sleep(0.01)
                while front.connections:
                    await asyncio.sleep(0.01)
            writer.close()


async def test_large_bodies_that_stall_do_not_keep_others_waiting(serve_http, http, monkeypatch):
    monkeypatch.setattr("pagewire_router.http_front.body.GRACE_S", 0.2)
    async with serve_http() as front:
        writers = [(await asyncio.open_connection(*front.address))[1] for _ in range(8)]
        for writer in writers:
            writer.write(HEAD % 1_000_000 + b" " * 200_000)
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            answer = await http.post(f"{front.base_url}/v1/completions", json={**ASK, "user": "a" * 300_000}, timeout=9)
        assert answer.status_code == 200
        for writer in writers:
            writer.close()


async def test_half_requests_are_given_up(serve_http, monkeypatch):
    monkeypatch.setattr(http_connection, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr("pagewire_router.http_front.body.RECEIVE_TIMEOUT_S", 0.1)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    async with serve_http() as front:
        async with asyncio.timeout(10):
            for begun, status in (
                (b"", b""),
                (b"POST /v1", b""),
                (head, b""),
                (head + b"content-length: 100\r\n\r\n{", b"408"),
                (b"GET / HTTP/1.1\r\na: " + b"b" * 1_000_000, b"400"),
                (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000, b"400"),
                (b"nonsense\r\n\r\n", b"400"),
            ):
                reader, writer = await asyncio.open_connection(*front.address)
                writer.write(begun)
                answer = await reader.readuntil(b"\r\n") if status else await reader.read()
                assert answer.split()[1:2] == ([status] if status else []), begun
                writer.close()


async def test_draining_finishes_streams_and_refuses_what_comes_then(serve_http, http):
    async with serve_http(step_s=0.02, script=lambda r: [40] * 20, config={"drain_grace_s": 10}) as front:
        stream = await front.openai().completions.create(**{**ASK, "max_tokens": 20}, stream=True)
        await anext(stream)
        draining = asyncio.create_task(front.router.server.drain())
        await asyncio.sleep(0.05)
        assert (await http.get(f"{front.base_url}/health")).status_code == 503
        rest = [chunk async for chunk in stream]
        assert rest[-1].choices[0].finish_reason == "length"
        await draining


async def test_tls_with_renewed_certificates_and_required_ones_of_clients(serve_http, tmp_path):
    authority = Authority(tmp_path / "authority")
    server, client = authority.issue("server", "127.0.0.1"), authority.issue("client")
    config = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": authority.ca}
    async with serve_http(config=config) as front:
        context = ssl.create_default_context(cafile=authority.ca)
        async with httpx2.AsyncClient(verify=context) as stranger:
            with pytest.raises(httpx2.TransportError):
                await stranger.get(f"{front.base_url}/health")
        context.load_cert_chain(client.cert, client.key)

        async def serial():
            _, writer = await asyncio.open_connection(*front.address, ssl=context)
            shown = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
            return shown

        async with httpx2.AsyncClient(verify=context) as known:
            assert (await known.post(f"{front.base_url}/v1/completions", json=ASK)).status_code == 200
        before = await serial()
        renewed = authority.issue("renewed", "127.0.0.1")
        Path(server.key).write_bytes(Path(renewed.key).read_bytes())
        Path(server.cert).write_bytes(Path(renewed.cert).read_bytes())
        assert await serial() != before


async def test_renewed_authorities_decide_about_clients(serve_http, tmp_path):
    """Also about those that resume a TLS session of before."""
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    server, ours = first.issue("server", "127.0.0.1"), tmp_path / "clients.pem"
    ours.write_bytes(Path(first.ca).read_bytes())
    config = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": str(ours)}

    def context_of(authority):
        context = ssl.create_default_context(cafile=first.ca)
        client = authority.issue("client")
        context.load_cert_chain(client.cert, client.key)
        return context

    def status(context, session=None):
        """The status of an answer and the TLS session; None: the server has refused the certificate."""
        with socket.create_connection(front.address, timeout=10) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as tls:
                    tls.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
                    answer = tls.recv(100)
                    return (answer.split()[1], tls.session) if answer else (None, None)
            except (ssl.SSLError, ConnectionError):
                return None, None

    async with serve_http(config=config) as front:
        known, stranger = context_of(first), context_of(second)
        tls_1_2 = context_of(first)
        tls_1_2.maximum_version = ssl.TLSVersion.TLSv1_2
        told, session = await asyncio.to_thread(status, known)
        _, session_1_2 = await asyncio.to_thread(status, tls_1_2)
        assert told == b"200"
        assert (await asyncio.to_thread(status, stranger))[0] is None
        ours.write_bytes(Path(second.ca).read_bytes())
        assert (await asyncio.to_thread(status, stranger))[0] == b"200"
        for context, resumed in ((known, None), (known, session), (tls_1_2, session_1_2)):
            assert (await asyncio.to_thread(status, context, resumed))[0] is None


async def test_the_openapi_document_describes_what_is_served(serve_http, http):
    async with serve_http() as front:
        told = (await http.get(f"{front.base_url}/openapi.json")).json()
        assert told["openapi"] == "3.1.0"
        assert "/v1/chat/completions" in told["paths"]
        for path, methods in told["paths"].items():
            for method, operation in methods.items():
                body = operation.get("requestBody")
                url = f"{front.base_url}{path}".format(model="tiny")
                answer = await http.request(method, url, **({"json": {}} if body else {}))
                required = body["content"]["application/json"]["schema"].get("required", []) if body else []
                assert answer.status_code == (400 if body else 200), path
                assert all(name in answer.text for name in required[:1])
    completions = told["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "suffix" not in completions["properties"]
    assert completions["properties"]["best_of"]["enum"] == [1]
    assert "additionalProperties" not in completions
