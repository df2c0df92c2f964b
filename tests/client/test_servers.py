"""A client of several servers: which one it asks, and what it does when that fails."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pagewire import AsyncClient, Client, InvalidRequest, TokenDelta, Unavailable
from pagewire.retry import RetryPolicy
from pagewire.servers import split_targets
from pagewire.v1 import inference_pb2 as pb
from pagewire.v1 import inference_pb2_grpc

from tests.client.conftest import FakeInference


@asynccontextmanager
async def server(address: str = "127.0.0.1:0", *, is_serving: bool = True):
    fake = FakeInference()
    grpc_server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(fake, grpc_server)
    checks = health.aio.HealthServicer()
    status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
    await checks.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(checks, grpc_server)
    fake.target = f"{address.rpartition(':')[0]}:{grpc_server.add_insecure_port(address)}"
    fake.server = grpc_server
    await grpc_server.start()
    try:
        yield fake
    finally:
        await grpc_server.stop(None)


def stands_by(fake: FakeInference, retry_after_s: float = 1.0) -> None:
    async def refuse(request, context):
        await fake.refuse(
            context, "UNAVAILABLE", "no shard group serves", reason="UNAVAILABLE", retry_after_s=retry_after_s
        )

    async def refuse_stream(request, context):
        await refuse(request, context)
        yield pb.GenerateResponse()

    fake.complete, fake.generate = refuse, refuse_stream


async def test_calls_spread_over_servers():
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(server()) for _ in range(3)]
        client = await stack.enter_async_context(AsyncClient([fake.target for fake in fakes]))
        held = asyncio.Event()
        for fake in fakes:

            async def hold(request, context, fake=fake):
                await held.wait()
                return await fake.all_words(request, context)

            fake.complete = hold
        asked = [asyncio.create_task(client.complete("x")) for _ in range(6)]
        async with asyncio.timeout(30):
            while sum(len(fake.requests) for fake in fakes) < 6:
                await asyncio.sleep(0.01)
        assert [len(fake.requests) for fake in fakes] == [2, 2, 2]
        held.set()
        await asyncio.gather(*asked)


async def test_a_server_that_refuses_is_left_for_the_next_at_once_and_for_a_while():
    async with server() as standby, server() as serving, AsyncClient(f"{standby.target}, {serving.target}") as client:
        stands_by(standby)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for _ in range(5):
            assert (await client.complete("x")).finished
        assert loop.time() - began_s < 0.9, "the delay that the standby asks for is for those who have no other server"
        assert len(serving.requests) == 5
        assert len(standby.requests) == 1


async def test_a_stream_is_resumed_at_another_server_when_its_own_dies():
    async with server() as first, server() as second:
        begun = asyncio.Event()

        async def hang(request, context):
            yield pb.GenerateResponse(started=pb.Started(seed=3, prompt_digest=b"prompt"))
            yield pb.GenerateResponse(delta=pb.Delta(text="a", token_ids=[1]))
            begun.set()
            await asyncio.Event().wait()

        async def go_on(request, context):
            yield pb.GenerateResponse(started=pb.Started(seed=3, prompt_digest=b"prompt"))
            yield pb.GenerateResponse(delta=pb.Delta(text="b", token_ids=[2]))

        first.generate, second.generate = hang, go_on

        async def kill():
            await begun.wait()
            await first.server.stop(None)

        async with AsyncClient([first.target, second.target]) as client:
            killing = asyncio.create_task(kill())
            text = [event.text async for event in client.generate("x") if isinstance(event, TokenDelta)]
            await killing
        assert text == ["a", "b"]
        assert list(second.requests[0].resume.sequences[0].token_ids) == [1]


async def test_when_no_server_serves_the_policy_decides():
    async with server() as one, server() as other:
        stands_by(one, 0.05)
        stands_by(other, 0.05)
        policy = RetryPolicy(max_unavailable_attempts=3)
        async with AsyncClient([one.target, other.target], retry=policy) as client:
            with pytest.raises(Unavailable, match="no shard group serves"):
                await client.complete("x")
        assert len(one.requests) + len(other.requests) == 3


async def test_one_server_that_serves_is_enough_to_be_healthy():
    async with server(is_serving=False) as one, server() as other:
        async with AsyncClient([one.target, other.target]) as client:
            assert await client.health()
        async with AsyncClient([one.target, "127.0.0.1:1"]) as client:
            assert not await client.health()


async def test_all_addresses_of_a_name_are_servers(monkeypatch):
    """One of two addresses of the name refuses connections."""
    async with server() as fake:
        port = int(fake.target.rpartition(":")[2])
        loop = asyncio.get_running_loop()
        looked_up = []

        async def getaddrinfo(host, port, **_):
            looked_up.append((host, port))
            return [(None, None, None, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        async with AsyncClient(f"dns:///router.example:{port}") as client:
            for _ in range(3):
                assert (await client.complete("x")).finished
        assert looked_up == [("router.example", port)]


async def test_a_name_with_nothing_behind_it_is_unavailable():
    policy = RetryPolicy(max_unavailable_attempts=2)
    async with AsyncClient("dns:///no-such-host.invalid:50051", retry=policy) as client:
        with pytest.raises(Unavailable, match="no pagewire server"):
            await client.complete("x")
        assert not await client.health()


def test_targets_are_lists_or_separated_by_commas():
    assert split_targets("a:1") == ["a:1"]
    assert split_targets("a:1, b:2,a:1") == ["a:1", "b:2"]
    assert split_targets(["a:1", "unix:/x"]) == ["a:1", "unix:/x"]
    assert split_targets("ipv4:1.2.3.4:5,1.2.3.5:6") == ["ipv4:1.2.3.4:5", "ipv4:1.2.3.5:6"]
    for wrong in ("", "a:1,", [], [""], [3], ["a:1", 3], None):
        with pytest.raises(InvalidRequest):
            split_targets(wrong)


def test_the_synchronous_client_takes_several_too():
    with Client(["127.0.0.1:1", "127.0.0.1:2"]) as client:
        assert client.target == "127.0.0.1:1,127.0.0.1:2"
        assert not client.health()
