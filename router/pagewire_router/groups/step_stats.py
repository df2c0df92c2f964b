"""Times of steps, summed over all shard groups, for metrics."""

from pagewire.v1 import shard_pb2
from pagewire_common.histogram import Histogram, bounds_between


class StepStats:
    """Sums of step timings."""

    def __init__(self) -> None:
        self.round_trip_s = Histogram(
            "pagewire_plan_round_trip_seconds",
            "From sending a step plan to its result, the plans ahead of it included.",
            bounds_between(-4, 2),
        )
        self.shard_s = dict.fromkeys(("queue", "prepare", "forward", "sample"), 0.0)
        """Seconds that shards have spent in each part of their steps."""

    def add(self, result: shard_pb2.StepResult, round_trip_s: float) -> None:
        """Adds one step."""
        self.round_trip_s.observe(round_trip_s)
        timings = result.timings
        self.shard_s["queue"] += timings.queue_us * 1e-6
        self.shard_s["prepare"] += timings.prepare_us * 1e-6
        self.shard_s["forward"] += timings.forward_us * 1e-6
        self.shard_s["sample"] += timings.sample_us * 1e-6
