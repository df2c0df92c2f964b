"""Shards and routers in this process that speak real gRPC: the model is a hash function, its steps can be frozen."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path

from pagewire.v1 import shard_pb2
from pagewire_common.protocol import PROTOCOL_MAJOR
from pagewire_router.config import RouterConfig
from pagewire_router.groups.dispatcher import Dispatcher
from pagewire_router.request import Request
from pagewire_shard.config import ShardConfig
from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.engine import Engine
from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.service.server import ShardServer
from pagewire_shard.stepping.step_thread import StepThread
from scheduling_world import VOCAB_SIZE, HashRunner, NullSink, expected_output, make_request

EOS_SHARE = 0.0
INFO = shard_pb2.ShardInfo(
    model="hash",
    model_digest=b"hash",
    tp_size=1,
    pp_size=1,
    block_size=4,
    num_blocks=[256],
    max_num_seqs=16,
    max_num_batched_tokens=64,
    max_model_len=512,
    vocab_size=VOCAB_SIZE,
    protocol_major=PROTOCOL_MAJOR,
)


class FreezableRunner(HashRunner):
    """A step takes a few milliseconds, or does not end while it is frozen."""

    def __init__(self) -> None:
        super().__init__(INFO.num_blocks[0], INFO.block_size, INFO.max_model_len, EOS_SHARE)
        self.may_run = threading.Event()
        self.may_run.set()
        self.num_steps = 0

    def forward(self, batch: RunBatch) -> None:
        threading.Event().wait(0.002)
        self.may_run.wait()
        self.num_steps += 1
        super().forward(batch)


class LiveShard:
    """One shard. A second one on the same address is the first one, started again."""

    def __init__(self, group_id: str, address: str, directory: Path, **options: object) -> None:
        self.group_id, self.address = group_id, address
        self.runner = FreezableRunner()
        info = shard_pb2.ShardInfo(group_id=group_id, incarnation=id(self))
        info.MergeFrom(INFO)
        engine = Engine(info, self.runner, BlockPool(INFO.num_blocks[0], INFO.block_size))
        self.steps = StepThread(lambda: engine)
        found: Future[Path] = Future()
        found.set_result(directory)
        config = ShardConfig(model="hash", model_name="hash", listen=address, **options)  # type: ignore[arg-type]
        self.server = ShardServer(config, found, self.steps)

    async def start(self) -> None:
        self.steps.start()
        await self.server.start()
        await self.server.open()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Ends it. Its step thread may still be frozen."""
        await self.server.stop(grace_s)

    async def die(self) -> None:
        """Its streams break and nobody listens any more, as after a kill."""
        await self.server._server.stop(None)

    def freeze(self) -> None:
        """The step thread hangs in the next step; everything else goes on."""
        self.runner.may_run.clear()

    def thaw(self) -> None:
        self.runner.may_run.set()


@asynccontextmanager
async def live_shard(
    directory: Path, group_id: str = "g", address: str | None = None, **options: object
) -> AsyncIterator[LiveShard]:
    """A shard that serves. options: of ShardConfig."""
    (directory / "config.json").write_text("{}")
    shard = LiveShard(group_id, address or f"127.0.0.1:{_free_port()}", directory, **options)
    await shard.start()
    try:
        yield shard
    finally:
        shard.thaw()
        await shard.stop()
        assert await asyncio.to_thread(shard.steps.join, 10)


@asynccontextmanager
async def live_router(*shards: str, **options: object) -> AsyncIterator[Dispatcher]:
    """A dispatcher over these addresses, not waited for. options: of RouterConfig."""
    dispatcher = Dispatcher(RouterConfig(shards=shards, **options), refresh_s=0.1)  # type: ignore[arg-type]
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop()


class Answer(NullSink):
    """A request's tokens, or how it failed."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.done = asyncio.Event()
        self.error: Exception | None = None

    def on_tokens(self, index: int, token_ids: list[int], logprobs: object) -> bool:
        self.token_ids += token_ids
        return False

    def on_finished(self, index: int, reason: int, stop_token_id: int | None, num_cached: int) -> None:
        self.done.set()

    def on_failed(self, error: Exception) -> None:
        self.error = error
        self.done.set()

    async def begun(self, num_tokens: int = 3) -> None:
        """Returns when so many tokens have come."""
        async with asyncio.timeout(30):
            while len(self.token_ids) < num_tokens and not self.done.is_set():
                await asyncio.sleep(0.005)

    async def end(self, timeout_s: float = 60) -> "Answer":
        """Returns when it has ended, one way or the other."""
        async with asyncio.timeout(timeout_s):
            await self.done.wait()
        return self


def ask(
    router: Dispatcher, number: int = 0, num_tokens: int = 300, *, resumes: bool = False, shard_loss_token: str = ""
) -> tuple[Request, Answer]:
    """Submits a request without a deadline."""
    prompt = [1 + number % 5, 1 + number // 5, 3, 4, 5]
    request = make_request(prompt, eos=False, max_tokens=num_tokens, ignore_eos=True)
    request.resumes, request.shard_loss_token = resumes, shard_loss_token
    request.sink = answer = Answer()
    router.submit(request)
    return request, answer


def check(request: Request, answer: Answer) -> None:
    """The answer is what it would be if nothing had happened."""
    assert answer.error is None
    assert answer.token_ids == expected_output(request, 0, INFO.max_model_len, EOS_SHARE)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
