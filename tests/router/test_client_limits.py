"""Limits of single clients: what is refused and until when, over both fronts, and what metrics say of whom."""

import asyncio
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pagewire.v1 import inference_pb2
from pagewire_router.admission import reloaded_file
from pagewire_router.admission.client_limits import MAX_CLIENTS, ClientLimits
from pagewire_router.admission.reloaded_file import FileError
from pagewire_router.caller import Caller
from pagewire_router.errors import RateLimited

FILE = """
[default]
concurrent_requests = 2
requests_per_minute = 6

[clients.batch]
requests_per_minute = inf
concurrent_requests = inf
tokens_per_minute = 60
weight = 0.5
"""
ADA, BOB, BATCH = (Caller(owner, "c", name) for owner, name in (("a", "ada"), ("b", ""), ("key:batch", "batch")))


class World:
    """Limits on a clock that the test sets."""

    def __init__(self, path: Path, content: str = FILE) -> None:
        path.write_text(content)
        self.now_s = 1000.0
        self.limits = ClientLimits(str(path), lambda: self.now_s)
        self.limits.read()

    def ask(self, caller: Caller, num_prompt: int = 1, num_generated: int = 0) -> None:
        """A request that has ended."""
        with self.limits.request(caller) as usage:
            usage.on_prompt(num_prompt)
            usage.on_generated(num_generated)

    def wait_s(self, caller: Caller) -> float:
        """When a refused client may come back."""
        with pytest.raises(RateLimited) as refused:
            self.ask(caller)
        assert refused.value.retry_after_s is not None
        return refused.value.retry_after_s


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "limits.toml")


def test_so_many_requests_run_at_a_time(world: World) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(world.limits.request(ADA))
        assert world.wait_s(ADA) > 0
        world.ask(BOB)
    world.ask(ADA)


def test_requests_per_minute_come_back_one_by_one(world: World) -> None:
    for _ in range(6):
        world.ask(ADA)
    assert world.wait_s(ADA) == pytest.approx(10.0)
    assert world.wait_s(ADA) == pytest.approx(10.0), "a refusal costs nothing"
    world.ask(BOB)
    world.now_s += 10.0
    world.ask(ADA)
    assert world.wait_s(ADA) == pytest.approx(10.0)
    world.now_s += 1e6
    for _ in range(6):
        world.ask(ADA)
    assert world.wait_s(ADA) == pytest.approx(10.0), "no more than a minute's worth is kept"


def test_tokens_are_counted_when_they_are_known_and_owed_until_then(world: World) -> None:
    world.ask(BATCH, 40, 10)
    world.ask(BATCH, 5, 125)
    assert world.wait_s(BATCH) == pytest.approx(121.0)
    world.now_s += 121.0
    world.ask(BATCH)


def test_a_request_that_fails_gives_its_place_back(world: World) -> None:
    for _ in range(5):
        with pytest.raises(KeyError), world.limits.request(ADA):
            raise KeyError
    assert world.limits.metrics.num_open["others"] == 0


def test_a_file_that_changes_counts_from_then_on(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloaded_file, "REREAD_S", 0.0)
    for _ in range(6):
        world.ask(ADA)
    (tmp_path / "limits.toml").write_text("[clients.ada]\nrequests_per_minute = inf\n")
    for _ in range(50):
        world.ask(ADA)
    (tmp_path / "limits.toml").write_text("[clients.ada]\nrequests_per_minute = 0\n")
    world.ask(ADA)


def test_few_clients_are_remembered(world: World) -> None:
    with world.limits.request(ADA):
        for number in range(2 * MAX_CLIENTS):
            world.ask(Caller(str(number), "c"))
        assert len(world.limits._clients) == MAX_CLIENTS
        assert ADA.owner in world.limits._clients, "it has a request at work"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[default]\nrequests = 3", "default.requests is unknown; known are concurrent_requests,"),
        ("[clients.a]\nrequests_per_minute = 0", "clients.a.requests_per_minute is no number above 0"),
        ("[clients.a]\nweight = 'x'", "clients.a.weight is no number above 0"),
        ("[clients.a]\nweight = inf", "clients.a.weight is not finite"),
        ("[clients.a]\nconcurrent_requests = true", "no number above 0"),
        ("[clients.a]\ntokens_per_minute = nan", "no number above 0"),
        ("[others]", "'others' is unknown"),
        ("clients = {a = 3}", "clients.a is no table"),
        ("clients = 3", "clients is no table"),
        ("[[", "limits.toml: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_at_start(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(FileError, match=why.replace("(", r"\(")):
        World(tmp_path / "limits.toml", content)


def test_a_table_takes_over_what_it_does_not_say(world: World) -> None:
    table = world.limits._file.value
    assert table.of("ada").requests_per_minute == 6
    assert table.of("batch").tokens_per_minute == 60
    assert table.of("batch").concurrent_requests == math.inf


SHORT = inference_pb2.GenerateRequest(
    token_ids=inference_pb2.TokenIds(ids=[5, 6, 7]), sampling_params=inference_pb2.SamplingParams(max_tokens=2)
)


async def test_both_fronts_refuse_and_metrics_name_clients_and_no_keys(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "limits.toml").write_text("[clients.small]\nrequests_per_minute = 2\n")
    (tmp_path / "keys").write_text("the-first-key small\nthe-second-key\nthe-third-key small\n")
    config = {
        "client_limits": str(tmp_path / "limits.toml"),
        "api_keys": str(tmp_path / "keys"),
        "http_port": 0,
    }
    async with serve(config=config) as router:

        async def complete(key: str) -> None:
            await router.stub.Complete(SHORT, metadata=(("authorization", f"Bearer {key}"),))

        await complete("the-first-key")
        await complete("the-third-key")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await complete("the-first-key")
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        details = rpc_status.from_call(refused.value).details
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert any(detail.Unpack(info) for detail in details)
        assert any(detail.Unpack(retry) for detail in details)
        assert info.reason == "RATE_LIMITED"
        assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 30
        status, headers, body = await post(router.server.http_address, "the-third-key")
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 30
        assert "rate_limit_exceeded" in body
        for _ in range(3):
            await complete("the-second-key")
        page = router.server._metrics.render().decode()
        assert 'pagewire_client_requests_total{client="small",outcome="accepted"} 2.0' in page
        assert 'pagewire_client_requests_total{client="small",outcome="too_many_requests"} 2.0' in page
        assert 'pagewire_client_requests_total{client="others",outcome="accepted"} 3.0' in page
        assert 'pagewire_client_tokens_total{client="small",kind="prompt"} 6.0' in page
        assert 'pagewire_client_tokens_total{client="small",kind="generation"} 4.0' in page
        assert 'pagewire_client_requests_open{client="small"} 0.0' in page
        assert "-key" not in page


async def post(address: str, key: str) -> tuple[int, dict[str, str], str]:
    """An answer of the HTTP front."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"prompt": [5, 6, 7], "max_tokens": 2}'
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    head, _, answer = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, answer
