"""Metrics of requests and connections over HTTP. Durations are in seconds, names of counters end in _total."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pagewire_common.histogram import Histogram, Rendered, bounds_between
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATUSES = (200, 204, 400, 401, 404, 405, 408, 409, 413, 415, 429, 499, 500, 503, 504)
"""Statuses that a request can end with; 499: its client has gone."""
STALLED_READER, LATE_HEAD, LARGE_HEAD, UNREAD_BODY = "stalled_reader", "late_head", "large_head", "unread_body"
SENT_AHEAD = "sent_ahead"
CLOSE_REASONS = (STALLED_READER, LATE_HEAD, LARGE_HEAD, UNREAD_BODY, SENT_AHEAD)
"""Why the server closes connections of clients that misbehave."""
MILLISECOND_TO_HOURS = bounds_between(-3, 4)


class _EndedRequests:
    """Requests by route and status: a Rendered, since prometheus_client takes a millisecond for so many lines."""

    name = "pagewire_http_requests_total"
    header = (
        f"# HELP {name} Requests over HTTP that ended, by route and status; 499: the client went away.\n"
        f"# TYPE {name} counter\n"
    )

    def __init__(self, routes: Sequence[str]) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self._line_starts = {
            (route, status): f'{self.name}{{route="{route}",status="{status}"}} '
            for route in routes
            for status in STATUSES
        }

    def lines(self) -> Iterator[str]:
        """The samples in the Prometheus text format."""
        for key, start in self._line_starts.items():
            yield f"{start}{float(self.counts[key])}\n"


class HttpMetrics(Collector):
    """Counted by one thread, read when they are scraped. Every series is there from the start, at 0."""

    def __init__(self, routes: Sequence[str], timed_routes: Sequence[str]) -> None:
        """
        Args:
            routes: all that requests are counted under.
            timed_routes: those of them whose requests are timed, and whose bytes are counted.
        """
        self._routes = routes
        self._timed_routes = timed_routes
        self._ended = _EndedRequests(routes)
        self._num_open: Counter[str] = Counter()
        self._num_received_bytes: Counter[str] = Counter()
        self._num_sent_bytes: Counter[str] = Counter()
        self.num_connections = 0
        """Connections that are open."""
        self.num_cut: Counter[str] = Counter()
        """Connections that the server has closed, by one of CLOSE_REASONS."""
        self._latency_s = {
            route: Histogram(
                "pagewire_http_request_latency_seconds",
                "From the head of a request to the end of its answer, by route.",
                MILLISECOND_TO_HOURS,
                label=("route", route),
            )
            for route in timed_routes
        }

    @property
    def rendered(self) -> Sequence[Rendered]:
        """Rendered beside the registry; see histogram.py."""
        return [self._ended, *self._latency_s.values()]

    def begin(self, route: str) -> None:
        """Counts a request whose head has come."""
        self._num_open[route] += 1

    def end(self, route: str, status: int, latency_s: float, num_received_bytes: int, num_sent_bytes: int) -> None:
        """Counts a request whose answer has ended, and the bytes of both bodies."""
        self._num_open[route] -= 1
        self._ended.counts[route, status] += 1
        histogram = self._latency_s.get(route)
        if histogram is not None:
            histogram.observe(latency_s)
            self._num_received_bytes[route] += num_received_bytes
            self._num_sent_bytes[route] += num_sent_bytes

    def collect(self) -> Iterator[Metric]:
        """Yields all but what is rendered beside the registry."""
        num_open = GaugeMetricFamily(
            "pagewire_http_requests_open", "Requests over HTTP whose answer has not ended.", labels=["route"]
        )
        for route in self._routes:
            num_open.add_metric([route], self._num_open[route])
        yield num_open
        for name, documentation, counter in (
            ("received", "Bytes of request bodies.", self._num_received_bytes),
            ("sent", "Bytes of answers' bodies, as they were given to the transport.", self._num_sent_bytes),
        ):
            num_bytes = CounterMetricFamily(f"pagewire_http_{name}_bytes", documentation, labels=["route"])
            for route in self._timed_routes:
                num_bytes.add_metric([route], counter[route])
            yield num_bytes
        yield GaugeMetricFamily(
            "pagewire_http_connections_open", "Connections of HTTP clients.", value=self.num_connections
        )
        closed = CounterMetricFamily(
            "pagewire_http_connections_cut",
            "Connections that the server closed: the client read nothing of its answer, sent the head of a request too "
            "late, one that was too large, a body beyond its answer, or too much ahead of an answer.",
            labels=["reason"],
        )
        for reason in CLOSE_REASONS:
            closed.add_metric([reason], self.num_cut[reason])
        yield closed
