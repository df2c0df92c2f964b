"""Measures the time of the router's scheduler in each step, with a shard that takes no time.

Times `schedule` and `update` of the scheduler alone, plans built and results read, for a range of running and waiting
requests, two plans in flight. "decode": every running sequence yields a token in every step and none ends. "turnover":
outputs are short, so that in every step some requests end and others are admitted from the queue. Parsing a result and
serializing a plan are timed apart.
"""

import argparse
import gc
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any, TypeVar

from ideal_shard import IdealShard
from machine import print_table, save_result
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_router.beams.search import Hypothesis
from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.scheduler import Scheduler

BLOCK_SIZE = 16
NUM_BLOCKS = 1 << 20
MAX_INFLIGHT = 2
PROMPT_LEN = 32
"""Every prompt is another one: the shard caches none."""
LONG_OUTPUT = 100_000
SHORT_OUTPUTS = range(64, 193)
"""Lengths of turnover: about one request in 128 ends in a step."""

T = TypeVar("T")


class NullSink:
    """Takes a request's output and does nothing with it."""

    def on_prompt_scores(self, scores: object) -> None:
        """Never comes."""

    def on_tokens(self, index: int, token_ids: list[int], logprobs: object) -> bool:
        """Never finds a stop string."""
        return False

    def on_finished(self, index: int, reason: int, stop_token_id: int | None, num_cached: int) -> None:
        """The sequence ended."""

    def on_beams(self, hypotheses: list[Hypothesis], num_cached: int) -> None: ...

    def on_failed(self, error: Exception) -> None:
        """The request failed."""
        raise error


@dataclass(slots=True)
class Timings:
    """Milliseconds of each call."""

    schedule_ms: list[float] = field(default_factory=list)
    update_ms: list[float] = field(default_factory=list)
    serialize_ms: list[float] = field(default_factory=list)
    parse_ms: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians, and the median and 99th percentile of schedule and update together."""
        steps = [schedule + update for schedule, update in zip(self.schedule_ms, self.update_ms, strict=True)]
        medians = {name: statistics.median(getattr(self, name)) for name in self.__slots__}
        return medians | {"step_ms": statistics.median(steps), "step_p99_ms": statistics.quantiles(steps, n=100)[98]}


class Load:
    """A scheduler that is kept at a number of running and of waiting requests."""

    def __init__(self, num_running: int, num_waiting: int, *, turnover: bool) -> None:
        self._turnover = turnover
        self._arrivals = count()
        self._scheduler = Scheduler(
            GroupLimits(
                num_blocks=NUM_BLOCKS,
                block_size=BLOCK_SIZE,
                max_num_seqs=num_running,
                max_num_batched_tokens=8192,
                max_model_len=PROMPT_LEN + LONG_OUTPUT,
            )
        )
        self._shard = IdealShard(NUM_BLOCKS, BLOCK_SIZE)
        self._results: deque[bytes] = deque()
        self._scheduler.reset(NUM_BLOCKS)
        for _ in range(num_running + num_waiting):
            self._add_request()

    def run(self, num_steps: int) -> Timings:
        """Runs steps; the timed calls see no garbage collection, as it is the whole process's cost."""
        timings = Timings()
        gc.collect()
        gc.disable()
        try:
            while len(self._results) < MAX_INFLIGHT:
                self._plan(Timings())
            for _ in range(num_steps):
                self._update(timings)
                self._plan(timings)
        finally:
            gc.enable()
        return timings

    def _plan(self, timings: Timings) -> None:
        plan = _timed(timings.schedule_ms, lambda: self._scheduler.schedule(0.0))
        assert plan is not None
        _timed(timings.serialize_ms, plan.SerializeToString)
        self._results.append(self._shard.apply(plan).SerializeToString())

    def _update(self, timings: Timings) -> None:
        message = self._results.popleft()
        result = _timed(timings.parse_ms, lambda: shard_pb2.StepResult.FromString(message))
        progress = _timed(timings.update_ms, lambda: self._scheduler.update(result))
        for entry in progress:
            if entry.finish_reason:
                self._add_request()

    def _add_request(self) -> None:
        arrival = next(self._arrivals)
        max_tokens = SHORT_OUTPUTS[arrival * 37 % len(SHORT_OUTPUTS)] if self._turnover else LONG_OUTPUT
        params = with_defaults(inference_pb2.SamplingParams(max_tokens=max_tokens))
        prompt = [arrival, *range(1, PROMPT_LEN)]
        self._scheduler.add(Request(str(arrival), prompt, params, NullSink(), arrival_s=float(arrival)))


def _timed(samples_ms: list[float], call: Callable[[], T]) -> T:
    began_s = perf_counter()
    value = call()
    samples_ms.append((perf_counter() - began_s) * 1000)
    return value


def main() -> None:
    """Measures every combination, prints a table and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--waiting", type=int, nargs="+", default=[0, 1_000, 10_000])
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--warm-up-steps", type=int, default=200, help="so that turnover is in its steady state")
    args = parser.parse_args()
    cases: list[dict[str, Any]] = []
    for kind in ("decode", "turnover"):
        for num_running in args.running:
            for num_waiting in args.waiting:
                load = Load(num_running, num_waiting, turnover=kind == "turnover")
                load.run(args.warm_up_steps)
                case = {"kind": kind, "num_running": num_running, "num_waiting": num_waiting}
                cases.append(case | load.run(args.num_steps).summary())
    columns = list(cases[0])
    print_table("Milliseconds for each step", columns, [list(case.values()) for case in cases])
    save_result("scheduler", vars(args), {"cases": cases})


if __name__ == "__main__":
    main()
