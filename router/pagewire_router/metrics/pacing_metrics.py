"""Metrics of how messages to clients are paced, and of the measurements that this follows."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagewire_router.output.pacer import Pacer


class PacingMetrics(Collector):
    """Gauges that are read when they are scraped. What they say of messages is said of gRPC's."""

    def __init__(self, pacer: Pacer, *others: Pacer) -> None:
        """others: pacers of other fronts, whose streams count too."""
        self._pacer = pacer
        self._all = (pacer, *others)

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        pacer, budget = self._pacer, self._pacer.budget
        for name, documentation, value in (
            ("streams_open", "Streams that were written and have not ended.", sum(p.num_streaming for p in self._all)),
            ("stream_interval_seconds", "Least time between two messages of a stream.", pacer.floor_s),
            ("message_cost_seconds", "CPU time that the event loop spends on a message to a client.", budget.cost_s),
            (
                "event_loop_busy_ratio",
                "Share of its time in which the event loop computes, as of the last messages.",
                budget.busy,
            ),
            (
                "event_loop_served_ratio",
                "Share of the time in which the event loop would compute that it has a core.",
                budget.served,
            ),
        ):
            yield GaugeMetricFamily(f"pagewire_{name}", documentation, value=value)
