"""A shard around a fake engine, served over real gRPC on loopback, and the router's side of a plan stream."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest
from pagewire.v1 import shard_pb2, shard_pb2_grpc
from pagewire_common.protocol import PROTOCOL_MAJOR
from pagewire_shard.config import ShardConfig
from pagewire_shard.errors import PlanRefused
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.service.server import ShardServer
from pagewire_shard.stepping.step_thread import StepThread

TIMEOUT_S = 60.0


@dataclass(eq=False)
class FakeStep:
    """A launched step; on a fake GPU it is ready when `done` is set."""

    step: int
    num_run: int
    num_tokens: int
    awaits_tokens: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def is_ready(self) -> bool:
        return self.done.is_set()


class FakeEngine:
    """Logs what is asked of it. Samples the step's number for every sequence."""

    def __init__(self, *, on_gpu: bool = False, num_cached_hashes: int = 3) -> None:
        self.info = shard_pb2.ShardInfo(
            group_id="g",
            model="fake",
            incarnation=0x1234,
            num_blocks=[10],
            tp_size=1,
            pp_size=1,
            protocol_major=PROTOCOL_MAJOR,
        )
        self.on_gpu = on_gpu
        self.log: list[str] = []
        self.launched: list[FakeStep] = []
        self.refusals: dict[int, PlanRefused] = {}
        self.bugs: dict[int, BaseException] = {}
        self.grammars: Grammars | None = None
        self.awaiting: set[int] = set()
        """Steps that are sampled when the tokens of the steps before them are there."""
        self.may_launch = threading.Event()
        self.may_launch.set()
        self.hashes = list(range(num_cached_hashes))

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        self.on_progress = on_progress

    def begin_epoch(self, max_inflight: int) -> list[int]:
        self._drop_names()
        self.log.append(f"begin {max_inflight}")
        return [10]

    def end_epoch(self) -> list[int]:
        self._drop_names()
        self.log.append("end")
        return [10]

    def _drop_names(self) -> None:
        if self.grammars is not None:
            self.grammars.end_epoch()

    def reset_cache(self) -> None:
        self.log.append("reset cache")

    def cached_hashes(self) -> list[int]:
        return self.hashes

    def launch(self, plan: shard_pb2.StepPlan) -> FakeStep:
        self.log.append(f"launch {plan.step}")
        assert self.may_launch.wait(TIMEOUT_S)
        if plan.step in self.refusals:
            raise self.refusals[plan.step]
        if plan.step in self.bugs:
            raise self.bugs[plan.step]
        step = FakeStep(plan.step, len(plan.run_seq_ids), 2 * len(plan.run_seq_ids))
        if not self.on_gpu:
            step.done.set()
        step.awaits_tokens = plan.step in self.awaiting
        self.launched.append(step)
        return step

    def sample(self, pending: FakeStep) -> None:
        assert pending.awaits_tokens
        pending.awaits_tokens = False
        self.log.append(f"sample {pending.step}")

    def collect(self, pending: FakeStep) -> shard_pb2.StepResult:
        assert pending.done.wait(TIMEOUT_S)
        self.log.append(f"collect {pending.step}")
        tokens = [pending.step] * pending.num_run
        return shard_pb2.StepResult(
            step=pending.step,
            num_computed_tokens=[2] * pending.num_run,
            sampled_token_ids=tokens,
            free_blocks=[10 - pending.num_run],
            timings=shard_pb2.StepTimings(prepare_us=100, forward_us=3000, sample_us=400),
        )


class Router:
    """One Execute call from the router's side."""

    def __init__(self, stub: shard_pb2_grpc.ShardStub) -> None:
        self.call = stub.Execute()
        self.epoch = shard_pb2.Epoch()
        self.heartbeats: deque[shard_pb2.Heartbeat] = deque()
        self.snapshots: list[shard_pb2.CacheSnapshot] = []

    async def send(self, **message: object) -> None:
        await self.call.write(shard_pb2.RouterMessage(**message))

    async def hello(
        self, router_id: str = "r", *, force: bool = False, max_inflight: int = 2, protocol_major: int = PROTOCOL_MAJOR
    ) -> shard_pb2.Welcome:
        """Takes the lease; raises the call's AioRpcError if it is refused."""
        hello = shard_pb2.Hello(
            router_id=router_id, force=force, max_inflight=max_inflight, protocol_major=protocol_major
        )
        await self.send(hello=hello)
        message = await self.call.read()
        if message is grpc.aio.EOF:
            raise await self.error()
        assert message.WhichOneof("message") == "welcome"
        self.epoch = message.welcome.epoch
        while not (self.snapshots and self.snapshots[-1].last):
            self.snapshots.append((await self.receive("cache_snapshot")).cache_snapshot)
        return message.welcome

    async def plan(self, *steps: int, run_seq_ids: Iterable[int] = (7,)) -> None:
        for step in steps:
            plan = shard_pb2.StepPlan(epoch=self.epoch, step=step, run_seq_ids=run_seq_ids)
            await self.send(plan=plan)

    async def receive(self, kind: str) -> shard_pb2.ShardMessage:
        """The next message that is not a heartbeat, which must be of the kind."""
        async with asyncio.timeout(TIMEOUT_S):
            while (message := await self.call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") != "heartbeat":
                    assert message.WhichOneof("message") == kind, message
                    return message
                self.heartbeats.append(message.heartbeat)
        raise await self.error()

    async def result(self) -> shard_pb2.StepResult:
        return (await self.receive("result")).result

    async def error(self) -> grpc.aio.AioRpcError:
        """How the call ends, after whatever is still to be read; OK too."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return error
            code, details = await self.call.code(), await self.call.details()
            return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), await self.call.trailing_metadata(), details)


@dataclass(eq=False)
class ServedShard:
    """A listening shard and what a test may want of it."""

    engine: FakeEngine
    steps: StepThread
    server: ShardServer
    address: str
    channel: grpc.aio.Channel

    def router(self) -> Router:
        return Router(shard_pb2_grpc.ShardStub(self.channel))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.005)


ServeShard = Callable[..., Awaitable[ServedShard]]


@pytest.fixture
def config(tmp_path: Path) -> ShardConfig:
    return ShardConfig(model="fake", model_name="fake", listen="127.0.0.1:0")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "fake"}))
    return directory


@pytest.fixture
async def serve_shard(config: ShardConfig, model_dir: Path) -> AsyncIterator[ServeShard]:
    """Starts shards around fake engines: `await serve_shard(engine, **changes to the configuration)`."""
    async with AsyncExitStack() as stack:

        async def serve(
            engine: FakeEngine | None = None, grammars: Grammars | None = None, **changes: object
        ) -> ServedShard:
            engine = engine or FakeEngine()
            engine.grammars = grammars
            steps = StepThread(lambda: engine)
            steps.start()
            found: Future[Path] = Future()
            found.set_result(model_dir)
            server = ShardServer(replace(config, **changes), found, steps, grammars)
            stack.push_async_callback(_stop, server, steps, engine)
            address = await server.start()
            await server.open()
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            return ServedShard(engine, steps, server, address, channel)

        yield serve


async def _stop(server: ShardServer, steps: StepThread, engine: FakeEngine) -> None:
    engine.may_launch.set()
    for step in engine.launched:
        step.done.set()
    await server.stop(0.0)
    assert await asyncio.to_thread(steps.join, TIMEOUT_S)


@pytest.fixture
def fake_engine() -> type[FakeEngine]:
    return FakeEngine
