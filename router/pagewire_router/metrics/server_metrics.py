"""Metrics of the router process: version, state, limits, and the lag of its event loop."""

import asyncio
import time
from collections.abc import Callable, Iterator

from pagewire_common.health_state import HealthState
from pagewire_common.histogram import Histogram
from pagewire_common.version import version
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagewire_router.config import RouterConfig

LAG_INTERVAL_S = 0.25


class ServerMetrics(Collector):
    """Gauges that are read when they are scraped."""

    def __init__(self, config: RouterConfig, state: Callable[[], HealthState]) -> None:
        """state: what the router does."""
        self._config = config
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        info = GaugeMetricFamily("pagewire_info", "1; the router's version.", labels=["version"])
        info.add_metric([version()], 1)
        yield info
        state = self._state()
        for name, documentation, value in (
            ("ready", "1 if a new request would run: /readyz.", state.is_ready),
            ("draining", "1 if the router was told to stop and finishes what runs.", state is HealthState.DRAINING),
            ("max_queued_requests", "Requests that may wait.", self._config.max_queued_requests),
            ("max_queued_tokens", "Tokens that may wait.", self._config.max_queued_tokens),
        ):
            yield GaugeMetricFamily(f"pagewire_{name}", documentation, value=value)


async def watch_loop_lag(histogram: Histogram) -> None:
    """Observes how late the event loop runs what is due, until cancelled. Sustained lag means a saturated router."""
    while True:
        due_s = time.monotonic() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        histogram.observe(max(time.monotonic() - due_s, 0.0))
