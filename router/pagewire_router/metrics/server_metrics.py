"""What the router tells Prometheus about itself: version, state, limits."""

from collections.abc import Callable, Iterator

from pagewire_common.version import version
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagewire_router.config import RouterConfig


class ServerMetrics(Collector):
    """Gauges that are read when they are scraped."""

    def __init__(self, config: RouterConfig, *, is_ready: Callable[[], bool], is_draining: Callable[[], bool]) -> None:
        self._config = config
        self._is_ready = is_ready
        self._is_draining = is_draining

    def collect(self) -> Iterator[Metric]:
        """What Prometheus scrapes."""
        info = GaugeMetricFamily("pagewire_info", "1; the router's version.", labels=["version"])
        info.add_metric([version()], 1)
        yield info
        for name, documentation, value in (
            ("ready", "1 if a new request would run: /readyz.", self._is_ready()),
            ("draining", "1 if the router was told to stop and finishes what runs.", self._is_draining()),
            ("max_queued_requests", "Requests that may wait.", self._config.max_queued_requests),
            ("max_queued_tokens", "Prompt tokens that may wait.", self._config.max_queued_tokens),
        ):
            yield GaugeMetricFamily(f"pagewire_{name}", documentation, value=value)
