"""What the shard groups and their schedulers tell Prometheus: read when scraped, so that steps pay nothing."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagewire_router.group_loop import GroupLoop
from pagewire_router.step_stats import StepStats


class EngineMetrics(Collector):
    """Steps over all groups, and the state of each group."""

    def __init__(self, groups: Sequence[GroupLoop], stats: StepStats) -> None:
        """`groups` may still grow."""
        self._groups = groups
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """What Prometheus scrapes."""
        stats = self._stats
        yield CounterMetricFamily("pagewire_steps", "Steps whose results came back.", value=stats.num_steps)
        yield CounterMetricFamily(
            "pagewire_plan_round_trip_seconds", "From sending plans to their results.", value=stats.round_trip_s
        )
        parts = CounterMetricFamily("pagewire_step_seconds", "Time of steps on the shards, by part.", labels=["part"])
        for part, seconds in stats.shard_s.items():
            parts.add_metric([part], seconds)
        yield parts
        yield from self._gauges()
        yield from self._counters()

    def _gauges(self) -> Iterator[Metric]:
        serving = GaugeMetricFamily("pagewire_group_serving", "1 if plans flow to the shard group.", labels=["group"])
        running = GaugeMetricFamily(
            "pagewire_group_sequences_running", "Sequences on the shard group.", labels=["group"]
        )
        queued = GaugeMetricFamily("pagewire_group_requests_queued", "Requests not yet admitted.", labels=["group"])
        tokens = GaugeMetricFamily("pagewire_group_tokens_queued", "Prompt tokens not yet admitted.", labels=["group"])
        usage = GaugeMetricFamily("pagewire_group_kv_cache_usage_ratio", "Share of blocks in use.", labels=["group"])
        for group in self._groups:
            scheduler, name = group.scheduler, [group.info.group_id]
            serving.add_metric(name, group.is_serving)
            running.add_metric(name, scheduler.num_running_sequences)
            queued.add_metric(name, len(scheduler.waiting))
            tokens.add_metric(name, scheduler.waiting.num_tokens)
            usage.add_metric(name, 1 - scheduler.free_blocks / scheduler.limits.num_blocks if group.is_serving else 0)
        yield from (serving, running, queued, tokens, usage)

    def _counters(self) -> Iterator[Metric]:
        preemptions = CounterMetricFamily("pagewire_preemptions", "Requests put back to wait.", labels=["group"])
        failovers = CounterMetricFamily("pagewire_failovers", "Plan streams that broke.", labels=["group"])
        for group in self._groups:
            preemptions.add_metric([group.info.group_id], group.scheduler.num_preemptions)
            failovers.add_metric([group.info.group_id], group.num_failovers)
        yield from (preemptions, failovers)
