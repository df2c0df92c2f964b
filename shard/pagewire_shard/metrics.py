"""The shard's Prometheus metrics: read from the step thread's counters when scraped, so that steps pay nothing."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pagewire_shard.step_stats import StepStats

COUNTERS = (
    ("pagewire_shard_steps", "num_steps", "Steps that have finished."),
    ("pagewire_shard_refused_plans", "num_refused_plans", "Plans that were refused as a whole."),
    ("pagewire_shard_sampled_tokens", "num_sampled_tokens", "Tokens that were sampled."),
    ("pagewire_shard_step_seconds", "step_s", "Time in steps."),
    ("pagewire_shard_plan_queue_seconds", "queue_s", "Time that plans waited for their turn."),
)


class StepCollector(Collector):
    """Turns StepStats into metrics."""

    def __init__(self, stats: StepStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """One sample of each metric."""
        for name, field, help_text in COUNTERS:
            yield CounterMetricFamily(name, help_text, value=getattr(self._stats, field))
        free = GaugeMetricFamily(
            "pagewire_shard_free_blocks",
            "Blocks that are free, counting cached blocks that nobody uses.",
            labels=["cache_group"],
        )
        for i, num_blocks in enumerate(self._stats.free_blocks):
            free.add_metric([str(i)], num_blocks)
        yield free
        yield GaugeMetricFamily(
            "pagewire_shard_cached_blocks", "Blocks in the prefix index.", value=self._stats.num_cached_blocks
        )


class ShardMetrics:
    """Renders one shard's metrics."""

    def __init__(self, stats: StepStats) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(StepCollector(stats))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
