"""The whole engine without the wire: the router's scheduler and the shard's engine, driven in this process.

Plans and results pass from one to the other as messages, two plans in flight, as the group loop and the step thread
pass them.
"""

import random
import statistics
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import torch
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire.v1.inference_pb2 import SamplingParams
from pagewire_common.block_hash import block_digests, root_digest, wire_hash
from pagewire_common.sampling_params import with_defaults
from pagewire_router.beams.search import Hypothesis
from pagewire_router.errors import RouterError
from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.scheduler import Scheduler
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.config import ShardConfig
from pagewire_shard.engine.engine import Engine
from pagewire_shard.engine.launched_step import LaunchedStep
from pagewire_shard.startup import build_engine

from gpu_parts.part import Bench
from gpu_parts.shapes import Shape, model_directory

MAX_INFLIGHT = 2
MAX_NUM_SEQS = 256


class NullSink:
    """Discards tokens."""

    def on_prompt_scores(self, scores: shard_pb2.PromptScores) -> None:
        """Nothing to do."""

    def on_tokens(self, index: int, token_ids: list[int], logprobs: list[shard_pb2.SequenceLogprobs] | None) -> bool:
        """Never stops a sequence."""
        return False

    def on_finished(
        self, index: int, reason: "inference_pb2.FinishReason.ValueType", stop_token_id: int | None, num_cached: int
    ) -> None:
        """Nothing to do."""

    def on_beams(self, hypotheses: list[Hypothesis], num_cached: int) -> None: ...

    def on_failed(self, error: RouterError) -> None:
        """Raises what the scheduler reports."""
        raise error


@dataclass(slots=True)
class Step:
    """Times of one turn of the loop."""

    end_s: float
    """Time at which its result was applied."""
    host_s: float
    """Time in the scheduler and the engine, before the wait for tokens began and after it ended."""
    wait_s: float
    """Time waiting for tokens."""
    num_sampled: int


def build(bench: Bench, shape: Shape, kv_cache_bytes: int) -> Engine:
    """An engine with dummy weights."""
    path = model_directory(shape, bench.folder)
    config = ShardConfig(
        model=str(path),
        model_name=shape.name,
        device="cuda" if bench.device.type == "cuda" else "cpu",
        dtype="auto" if bench.device.type == "cuda" else "float32",
        max_num_seqs=bench.size(MAX_NUM_SEQS, 8),
        max_model_len=bench.size(33_280, 512),
        kv_cache_memory_bytes=kv_cache_bytes,
        load_format="dummy",
    )
    engine = build_engine(config, path, b"")
    fill_caches(engine)
    return engine


@torch.inference_mode()
def fill_caches(engine: Engine) -> None:
    """Fills the caches with random numbers: uninitialised memory may hold NaN, and zeros are read faster."""
    for layer in engine._runner.kv_caches:  # type: ignore[attr-defined]
        for cache in layer:
            cache.normal_()


class Driver:
    """One epoch of an engine."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.engine = engine
        info = engine.info
        engine.reset_cache()
        (free,) = engine.begin_epoch(MAX_INFLIGHT)
        self.scheduler = Scheduler(
            GroupLimits(
                num_blocks=free,
                block_size=info.block_size,
                max_num_seqs=info.max_num_seqs,
                max_num_batched_tokens=info.max_num_batched_tokens,
                max_model_len=info.max_model_len,
            )
        )
        self._rng = random.Random(seed)
        self._pending: deque[LaunchedStep] = deque()
        self._num_requests = 0

    def add(self, prompt_len: int, max_tokens: int, *, cached: bool = False) -> SequenceGroup:
        """Queues a request of random tokens.

        Args:
            cached: The block pool claims to hold its prompt, so that nothing but the last tokens is computed. What
                    attention reads is then random: as many bytes, from as many places.
        """
        prompt = self._rng.choices(range(1, self.engine.info.vocab_size), k=prompt_len)
        if cached:
            self._claim(prompt)
        return self.add_prompt(prompt, max_tokens)

    def add_prompt(
        self, prompt: list[int], max_tokens: int, *, params: SamplingParams | None = None, grammar: str = ""
    ) -> SequenceGroup:
        """Queues a request, to be decoded greedily unless params say otherwise; grammar: as Request has it."""
        self._num_requests += 1
        given = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        if params is not None:
            given.MergeFrom(params)
        arrival_s = float(self._num_requests)
        request = Request(str(arrival_s), prompt, with_defaults(given), NullSink(), arrival_s, grammar=grammar)
        return self.scheduler.add(request)

    def step(self) -> Step | None:
        """Keeps plans in flight and takes in one result; None: nothing is left to do."""
        began_s = perf_counter()
        while self.scheduler.num_inflight < MAX_INFLIGHT:
            plan = self.scheduler.schedule(0.0)
            if plan is None:
                break
            launched = self.engine.launch(plan)
            self._pending.append(launched)
            if launched.awaits_tokens:
                self.engine.sample(launched)
        if not self._pending:
            return None
        pending = self._pending.popleft()
        waits_s = perf_counter()
        while not pending.is_ready():
            pass
        waited_s = perf_counter()
        result = self.engine.collect(pending)
        self.scheduler.update(result)
        end_s = perf_counter()
        return Step(end_s, (waits_s - began_s) + (end_s - waited_s), waited_s - waits_s, len(result.sampled_token_ids))

    def close(self) -> None:
        """Ends the epoch."""
        while self._pending:
            self.engine.collect(self._pending.popleft())
        self.engine.end_epoch()

    def _claim(self, prompt: list[int]) -> None:
        pool = self.engine.pool
        blocks = []
        digests = block_digests(root_digest(""), prompt[:-1], pool.block_size)
        self.scheduler.prefixes.update(map(wire_hash, digests), ())
        for digest in digests:
            block = pool.allocate()
            pool.index(block, digest)
            blocks.append(block)
        pool.release(blocks)


def decode_steps(driver: Driver, num_seqs: int, context: int, num_steps: int) -> list[Step]:
    """Steps in which num_seqs sequences of about `context` tokens each yield one token and nothing else happens."""
    block_size = driver.engine.info.block_size
    # All tokens of the prompt but the last fill blocks, so that one token is left to compute.
    prompt_len = max(1, context // block_size * block_size - block_size) + 1
    warm_up = 8
    for _ in range(num_seqs):
        driver.add(prompt_len, 4 * (num_steps + warm_up), cached=True)
    steps: list[Step] = []
    num_full = 0
    while len(steps) < num_steps + 1:
        step = driver.step()
        assert step is not None, "the requests ended before they were measured"
        num_full = num_full + 1 if step.num_sampled == num_seqs else 0
        if num_full > warm_up:
            steps.append(step)
        elif steps:
            steps.clear()
    driver.close()
    return steps


def step_times_s(steps: list[Step]) -> list[float]:
    """Returns the seconds from one result to the next."""
    return [after.end_s - before.end_s for before, after in pairwise(steps)]


def median_host_s(steps: list[Step]) -> float:
    """Returns the median host time of a step, without waits."""
    return statistics.median(step.host_s for step in steps)
