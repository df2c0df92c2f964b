"""Shards that come and go behind a name, and routers that wait for them or for each other."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cluster import Service, eventually, free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pagewire import AsyncClient, Client, SamplingParams, TokenDelta, Unavailable
from pagewire.retry import NEVER, RetryPolicy
from pagewire_router.config import RouterConfig
from pagewire_router.groups import shard_directory
from pagewire_router.groups.dispatcher import Dispatcher
from pagewire_router.server import RouterServer
from random_models import random_prompts
from reference_model import Comparison, ReferenceModel

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
(PROMPT,) = random_prompts((12,), seed=3)
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=700, ignore_eos=True)
PATIENT = RetryPolicy(max_unavailable_attempts=1000, max_delay_s=0.2)


@dataclass
class Names:
    """A resolver whose answer a test may change."""

    addresses: list[str] = field(default_factory=list)
    error: OSError | None = None
    num_failures: int = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("shards", 50052)
        self.num_failures += self.error is not None
        if self.error is not None:
            raise self.error
        return list(self.addresses)


@dataclass
class Router:
    """A router in this process whose shards are behind a name."""

    names: Names
    dispatcher: Dispatcher
    server: RouterServer
    address: str

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_groups(self, *group_ids: str) -> None:
        """Waits until exactly these shard groups serve."""
        async with asyncio.timeout(60):
            while sorted(g.info.group_id for g in self.dispatcher.groups if g.is_serving) != sorted(group_ids):
                await asyncio.sleep(0.01)


Shards = Callable[..., Service]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        yield Path(name)


@pytest.fixture
def start_shard(model: Path, directory: Path) -> Iterator[Shards]:
    """Starts shards on Unix sockets: start_shard(name, *flags); address_of(shard) says where."""
    with ExitStack() as stack:

        def start(name: str, *flags: str, listen: str | None = None) -> Service:
            command = [
                *(sys.executable, "-m", "pagewire_shard", "--model", str(model)),
                *("--listen", listen or f"unix:{directory}/{name}.sock", "--group-id", name),
                *("--cpu-threads", "1", "--device", "cpu", "--kv-cache-memory", "16MiB", "--exit-with-parent", *flags),
            ]
            shard = Service(name, command, directory)
            stack.callback(shard.stop)
            return shard

        yield start


@pytest.fixture
async def start_router(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Awaitable[Router]]]:
    """Starts routers that look their names up all the time and give up shards soon."""
    monkeypatch.setattr(shard_directory, "GONE_AFTER_S", 0.2)
    async with contextlib.AsyncExitStack() as stack:

        async def start(*addresses: str) -> Router:
            names = Names(list(addresses))
            config = RouterConfig(shards=("dns:///shards:50052",), listen="127.0.0.1:0")
            dispatcher = Dispatcher(config, resolver=names, refresh_s=0.05)
            server = RouterServer(config, dispatcher)
            address = await server.start()
            stack.push_async_callback(server.stop)
            return Router(names, dispatcher, server, address)

        yield start


@asynccontextmanager
async def opened(router: Router) -> AsyncIterator[AsyncClient]:
    """The router once it serves, and a client of it."""
    async with asyncio.timeout(60):
        await router.server.open()
    async with AsyncClient(router.address, timeout_s=120, retry=NEVER) as client:
        yield client


async def stream(client: AsyncClient, begun: asyncio.Event) -> list[int]:
    """A long greedy stream's tokens."""
    tokens: list[int] = []
    async for event in client.generate({"prompt_token_ids": PROMPT}, LONG):
        if isinstance(event, TokenDelta):
            tokens += event.token_ids
            begun.set()
    return tokens


def check(tokens: list[int], reference: ReferenceModel) -> None:
    """No token is lost, none comes twice."""
    assert len(tokens) == LONG.max_tokens
    comparison = Comparison()
    comparison.check(reference.greedy_after(PROMPT, tokens), tokens, "the stream")
    assert comparison.num_near_ties <= 1


def kill(shard: Service) -> None:
    os.kill(shard.pid, signal.SIGKILL)
    shard.process.wait()


async def test_groups_join_and_leave_and_lose_no_token(
    start_shard: Shards, start_router: Callable[..., Awaitable[Router]], reference: ReferenceModel
) -> None:
    shards = {name: start_shard(name) for name in ("a", "b", "later")}
    addresses = {name: shard.wait_ready() for name, shard in shards.items()}
    router = await start_router(addresses["a"])
    async with opened(router) as client:
        await router.until_groups("a")
        begun = asyncio.Event()
        running = asyncio.create_task(stream(client, begun))
        await begun.wait()
        router.names.addresses.append(addresses["b"])
        await router.until_groups("a", "b")
        assert not running.done(), "the stream is too short to see a shard go"
        kill(shards["a"])
        router.names.addresses.remove(addresses["a"])
        tokens = await running
        check(tokens, reference)
        await router.until(lambda: len(router.dispatcher.groups) == 1, "the group without a shard is dropped")
        await router.until_groups("b")

        router.names.error = OSError("the name server is away")
        await router.until(lambda: router.names.num_failures > 2, "names cannot be looked up")
        await router.until_groups("b")
        assert (await client.complete({"prompt_token_ids": PROMPT}, SHORT)).outputs[0].token_ids == tokens[:4]
        router.names.error = None

        kill(shards["b"])
        router.names.addresses.clear()
        await router.until(lambda: not router.dispatcher.groups, "no group is left")
        with pytest.raises(Unavailable) as refused:
            await client.complete({"prompt_token_ids": PROMPT}, SHORT)
        assert refused.value.retry_after_s

        router.names.addresses.append(addresses["later"])
        await router.until_groups("later")
        assert (await client.complete({"prompt_token_ids": PROMPT}, SHORT)).outputs[0].token_ids == tokens[:4]


async def test_a_stream_waits_for_the_only_group_to_come_back_at_another_address(
    start_shard: Shards, start_router: Callable[..., Awaitable[Router]], reference: ReferenceModel, directory: Path
) -> None:
    first = start_shard("a")
    router = await start_router(first.wait_ready())
    async with opened(router) as client:
        begun = asyncio.Event()
        running = asyncio.create_task(stream(client, begun))
        await begun.wait()
        kill(first)
        second = start_shard("a", listen=f"unix:{directory}/elsewhere.sock")
        router.names.addresses[:] = [f"unix:{directory}/elsewhere.sock"]
        check(await running, reference)
        assert [group.info.group_id for group in router.dispatcher.groups] == ["a"]
        assert second.process.poll() is None


def start_router_process(directory: Path, name: str, shards: str, stack: ExitStack, *flags: str) -> tuple[Service, int]:
    """A router on a Unix socket named after it, and its health port."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "pagewire_router", "--shards", shards, "--listen", f"unix:{directory}/{name}.sock"),
        *("--health-port", str(port), "--exit-with-parent", "--drain-grace", "1", *flags),
    ]
    router = Service(name, command, directory)
    stack.callback(router.stop)
    return router, port


def probe(port: int, service: str) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, wait_for_ready=True, timeout=30).status)


def test_a_router_whose_name_does_not_resolve_stays_up(directory: Path) -> None:
    with ExitStack() as stack:
        router, port = start_router_process(directory, "router", "dns:///no-such-name.invalid:50052", stack)
        assert probe(port, "liveness") == SERVING
        assert probe(port, "") == probe(port, "pagewire.v1.Inference") == NOT_SERVING
        with Client(f"unix:{directory}/router.sock", retry=NEVER) as client:
            assert not client.health()
            for call in (lambda: client.complete("x"), lambda: list(client.generate("x"))):
                with pytest.raises(Unavailable, match="looks for shards") as refused:
                    call()
                assert refused.value.retry_after_s
        assert router.stop() == 0, router.log()
        assert "Traceback" not in router.log()


def test_shards_behind_a_real_name_are_found_when_they_start(start_shard: Shards, directory: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        router, health_port = start_router_process(directory, "router", f"dns:///localhost:{port}", stack)
        assert probe(health_port, "") == NOT_SERVING
        start_shard("a", listen=f"127.0.0.1:{port}")
        address = router.wait_ready()
        assert probe(health_port, "") == SERVING
        with Client(address, timeout_s=60) as client:
            assert client.complete({"prompt_token_ids": PROMPT}, SHORT).outputs[0].token_ids


def test_a_second_router_stands_by_until_the_first_is_gone(start_shard: Shards, directory: Path) -> None:
    shard = start_shard("a").wait_ready()
    with ExitStack() as stack:
        first, _ = start_router_process(directory, "first", shard, stack)
        first.wait_ready()
        second, port = start_router_process(directory, "second", shard, stack)
        eventually(lambda: "the lease is held by" in second.errors, f"the second stands by\n{second.log()}", 60)
        assert (probe(port, ""), probe(port, "liveness")) == (NOT_SERVING, SERVING)
        with Client(f"unix:{directory}/second.sock", retry=NEVER) as client:
            with pytest.raises(Unavailable, match="no shard group serves") as refused:
                client.complete({"prompt_token_ids": PROMPT}, SHORT)
            assert refused.value.retry_after_s
            os.kill(first.pid, signal.SIGKILL)
            second.wait_ready()
            assert probe(port, "") == SERVING
            assert client.complete({"prompt_token_ids": PROMPT}, SHORT).outputs[0].token_ids


@pytest.mark.slow
def test_a_router_ends_when_its_shards_serve_another_model(start_shard: Shards, directory: Path) -> None:
    ours, elsewhere = start_shard("a"), f"unix:{directory}/b.sock"
    with ExitStack() as stack:
        router, port = start_router_process(directory, "router", f"{ours.wait_ready()},{elsewhere}", stack)
        eventually(lambda: probe(port, "") == SERVING, f"one shard is enough\n{router.log()}", 60)
        start_shard("b", "--load-format", "dummy", "--seed", "5").wait_ready()
        with Client(f"unix:{directory}/router.sock", timeout_s=60) as client:
            assert client.complete({"prompt_token_ids": PROMPT}, SHORT).outputs[0].token_ids
        kill(ours)
        assert router.process.wait(60) == 1, router.log()
        assert router.errors.splitlines()[-1].startswith("error: the shards serve another model now")


@pytest.mark.slow
async def test_a_shard_that_comes_back_with_another_pool_is_driven_anew(
    start_shard: Shards, start_router: Callable[..., Awaitable[Router]]
) -> None:
    first = start_shard("a")
    router = await start_router(first.wait_ready())
    async with opened(router) as client:
        num_blocks = router.dispatcher.groups[0].info.num_blocks[0]
        kill(first)
        start_shard("a", "--kv-cache-memory", "8MiB")
        await router.until(
            lambda: [g.is_serving and g.info.num_blocks[0] < num_blocks for g in router.dispatcher.groups] == [True],
            "the group serves with the smaller pool",
        )
        assert (await client.complete({"prompt_token_ids": PROMPT}, SHORT)).outputs
