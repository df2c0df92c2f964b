"""What steps took and brought, summed over all shard groups: for metrics, and for telling clients when to come back."""

import time

from pagewire.v1 import shard_pb2

from pagewire_router.metrics.histogram import Histogram, bounds_between

RATE_MEMORY_S = 5.0
"""The rate of admissions is averaged over about so long."""


class StepStats:
    """Sums of step timings, and the recent rate of admissions."""

    def __init__(self) -> None:
        self.round_trip_s = Histogram(
            "pagewire_plan_round_trip_seconds",
            "From sending a step plan to its result, the plans ahead of it included.",
            bounds_between(-4, 2),
        )
        self.shard_s = dict.fromkeys(("queue", "prepare", "forward", "sample"), 0.0)
        """Where shards spent it."""
        self._admissions_per_s = 0.0
        self._last_s = time.monotonic()

    def add(self, result: shard_pb2.StepResult, round_trip_s: float) -> None:
        """Takes in one step."""
        self.round_trip_s.observe(round_trip_s)
        timings = result.timings
        self.shard_s["queue"] += timings.queue_us * 1e-6
        self.shard_s["prepare"] += timings.prepare_us * 1e-6
        self.shard_s["forward"] += timings.forward_us * 1e-6
        self.shard_s["sample"] += timings.sample_us * 1e-6
        now = time.monotonic()
        elapsed_s, self._last_s = now - self._last_s, now
        weight = min(1.0, elapsed_s / RATE_MEMORY_S)
        rate = len(result.first_run_indices) / max(elapsed_s, 1e-6)
        self._admissions_per_s += weight * (rate - self._admissions_per_s)

    def seconds_to_admit(self, num_requests: int) -> float:
        """How long it takes until so many waiting requests are admitted, if things go on as they did."""
        return num_requests / max(self._admissions_per_s, 1.0)
