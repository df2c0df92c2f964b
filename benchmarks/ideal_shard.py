"""A shard that takes no time: answers step plans as a real one would, without computing anything.

As a process it is a gRPC server that a router drives like any shard. It samples the same token always, so that what a
service costs beside the model's steps can be measured; --step-ms makes it a device with steps of that length.
"""

import argparse
import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
from pagewire.v1 import shard_pb2
from pagewire_common.protocol import MAX_SHARD_MESSAGE_BYTES, PROTOCOL_MAJOR, PROTOCOL_MINOR

TOKEN = 7
BLOCK_SIZE = 16
NUM_BLOCKS = 1 << 20
LEASE_TERM_MS = 10_000
HEARTBEAT_S = 1.0
READY = "ideal-shard ready on"
_GOES_ON = shard_pb2.STOP_REASON_UNSPECIFIED

RawContext = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(slots=True)
class _Lane:
    """State of a sequence."""

    computed: int
    known: int
    limit: int
    num_blocks: int = 0


class IdealShard:
    """Samples the same token always and stops sequences at max_tokens; caches no prefixes, knows no forks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._num_free = num_blocks
        self._block_size = block_size
        self._lanes: dict[int, _Lane] = {}

    def apply(self, plan: shard_pb2.StepPlan) -> shard_pb2.StepResult:
        """Returns the result that a shard would send."""
        lanes, block_size = self._lanes, self._block_size
        for seq_id in plan.release_seq_ids:
            self._num_free += lanes.pop(seq_id).num_blocks
        for admit in plan.admits:
            limit = admit.num_prompt_tokens + admit.stop.max_tokens
            lanes[admit.seq_id] = _Lane(0, len(admit.token_ids), limit)
        ran = [lanes[seq_id] for seq_id in plan.run_seq_ids]
        num_sampled, stop_reasons = [0] * len(ran), [_GOES_ON] * len(ran)
        for row, (lane, budget) in enumerate(zip(ran, plan.run_token_budgets, strict=True)):
            lane.computed = min(lane.computed + budget, lane.known)
            if lane.computed == lane.known and lane.known < lane.limit:
                lane.known += 1
                num_sampled[row] = 1
            if lane.known == lane.limit:
                stop_reasons[row] = shard_pb2.STOP_REASON_LENGTH
            if lane.computed > lane.num_blocks * block_size:
                num_blocks = -(-lane.computed // block_size)
                self._num_free -= num_blocks - lane.num_blocks
                lane.num_blocks = num_blocks
        admitted = {admit.seq_id for admit in plan.admits}
        first_runs = [row for row, seq_id in enumerate(plan.run_seq_ids) if seq_id in admitted] if admitted else []
        return shard_pb2.StepResult(
            step=plan.step,
            num_computed_tokens=[lane.computed for lane in ran],
            num_known_tokens=[lane.known for lane in ran],
            num_sampled_tokens=num_sampled,
            sampled_token_ids=[TOKEN] * sum(num_sampled),
            stop_reasons=stop_reasons,
            next_write_block_shared=[False] * len(ran),
            first_run_indices=first_runs,
            num_cached_tokens=[0] * len(first_runs),
            free_blocks=[self._num_free],
        )


class IdealShardService:
    """The service pagewire.v1.Shard over an IdealShard for each plan stream: one router at a time, never refused."""

    def __init__(self, info: shard_pb2.ShardInfo, files: dict[str, bytes], step_s: float) -> None:
        self._info = info
        self._files = files
        self._step_s = step_s
        self._num_epochs = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a grpc.aio server."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Execute": grpc.stream_stream_rpc_method_handler(self._execute),
            "GetInfo": grpc.unary_unary_rpc_method_handler(self._get_info),
            "GetModelFiles": grpc.unary_stream_rpc_method_handler(self._get_model_files),
        }
        return grpc.method_handlers_generic_handler("pagewire.v1.Shard", methods)

    async def _get_info(self, _request: bytes, _context: RawContext) -> bytes:
        return self._info.SerializeToString()

    async def _get_model_files(self, _request: bytes, _context: RawContext) -> AsyncIterator[bytes]:
        for name, data in self._files.items():
            yield shard_pb2.ModelFileChunk(name=name, data=data, sha256=sha256(data).digest()).SerializeToString()

    async def _execute(self, _requests: object, context: RawContext) -> None:
        hello = shard_pb2.RouterMessage.FromString(await _read(context)).hello
        self._num_epochs += 1
        epoch = shard_pb2.Epoch(incarnation=self._info.incarnation, counter=self._num_epochs)
        welcome = shard_pb2.Welcome(
            epoch=epoch,
            lease_term_ms=LEASE_TERM_MS,
            max_inflight=hello.max_inflight,
            info=self._info,
            free_blocks=self._info.num_blocks,
        )
        snapshot = shard_pb2.CacheSnapshot(last=True)
        await context.write(shard_pb2.ShardMessage(welcome=welcome).SerializeToString())
        await context.write(shard_pb2.ShardMessage(cache_snapshot=snapshot).SerializeToString())
        writing = asyncio.Lock()
        beating = asyncio.create_task(_beat(context, writing))
        try:
            await self._run_plans(context, writing)
        finally:
            beating.cancel()

    async def _run_plans(self, context: RawContext, writing: asyncio.Lock) -> None:
        """Answers plans in order, each when the device would be done with it, until the router says goodbye."""
        loop = asyncio.get_running_loop()
        shard = IdealShard(self._info.num_blocks[0], self._info.block_size)
        done_s = 0.0
        while True:
            message = shard_pb2.RouterMessage.FromString(await _read(context))
            kind = message.WhichOneof("message")
            if kind == "goodbye":
                return
            if kind != "plan":
                continue
            result = shard_pb2.ShardMessage(result=shard.apply(message.plan)).SerializeToString()
            done_s = max(done_s, loop.time()) + self._step_s
            if self._step_s:
                await asyncio.sleep(done_s - loop.time())
            async with writing:
                await context.write(result)


async def _read(context: RawContext) -> bytes:
    data: Any = await context.read()
    if not isinstance(data, bytes):
        raise asyncio.CancelledError  # The router has gone.
    return data


async def _beat(context: RawContext, writing: asyncio.Lock) -> None:
    beat = shard_pb2.ShardMessage(heartbeat=shard_pb2.Heartbeat()).SerializeToString()
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        async with writing:
            await context.write(beat)


def shard_info(vocab_size: int, max_num_seqs: int, max_num_batched_tokens: int) -> shard_pb2.ShardInfo:
    """Describes the shard. Sequences are at most 100,000 tokens long."""
    return shard_pb2.ShardInfo(
        group_id="ideal",
        tp_size=1,
        pp_size=1,
        model="ideal",
        model_digest=b"ideal",
        architecture="none",
        dtype="none",
        device="none",
        block_size=BLOCK_SIZE,
        num_blocks=[NUM_BLOCKS],
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=100_000,
        vocab_size=vocab_size,
        incarnation=secrets.randbits(63),
        protocol_major=PROTOCOL_MAJOR,
        protocol_minor=PROTOCOL_MINOR,
    )


async def serve(info: shard_pb2.ShardInfo, files: dict[str, bytes], step_s: float) -> None:
    """Serves on a free port until the process is ended; prints the address."""
    limits = [("grpc.max_receive_message_length", MAX_SHARD_MESSAGE_BYTES), ("grpc.http2.max_ping_strikes", 0)]
    server = grpc.aio.server(options=limits)
    server.add_generic_rpc_handlers((IdealShardService(info, files, step_s).handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{READY} 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Serves as a process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json; without one, token ids alone are served")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--step-ms", type=float, default=0.0, help="length of a step; 0: as fast as plans come")
    args = parser.parse_args()
    files = {"tokenizer.json": args.tokenizer.read_bytes()} if args.tokenizer else {}
    info = shard_info(args.vocab_size, args.max_num_seqs, args.max_num_batched_tokens)
    import uvloop

    uvloop.run(serve(info, files, args.step_ms / 1000))


if __name__ == "__main__":
    main()
