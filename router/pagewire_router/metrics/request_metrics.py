"""Metrics of requests. Durations are in seconds, names of counters end in _total."""

from collections import Counter
from collections.abc import Iterable, Iterator

from pagewire_common.histogram import Histogram, Rendered, bounds_between, bounds_of_counts, render
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pagewire_router.errors import STATUS_CODES, RouterError, StatusCode, status_code

METHODS = ("Generate", "Complete", "Tokenize", "Detokenize", "GetModel")
STATUSES = sorted(
    {StatusCode.OK.name, StatusCode.CANCELLED.name, StatusCode.INTERNAL.name}
    | {code.name for code in STATUS_CODES.values()}
)
"""Statuses that a call can end with."""
FINISH_REASONS = ("stop", "length", "abort", "error")

MILLISECOND_TO_MINUTES = bounds_between(-3, 2)
TENTH_OF_MILLISECOND_TO_MINUTES = bounds_between(-4, 2)
MILLISECOND_TO_HOURS = bounds_between(-3, 4)
TENTH_OF_MILLISECOND_TO_SECONDS = bounds_between(-4, 1)
TOKENS = bounds_of_counts(6)


class _Counts(Collector):
    """The counters of Metrics, read when they are scraped.

    Every series is there from the start. A series that appears with its first event would show no increase, so that
    rates and alerts would miss that event.
    """

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "pagewire_requests", "Calls that ended, by gRPC status.", labels=["method", "status"]
        )
        for method in METHODS:
            for status in STATUSES:
                calls.add_metric([method, status], self._metrics.num_calls[method, status])
        yield calls
        finished = CounterMetricFamily(
            "pagewire_sequences_finished",
            "Sequences that ended: stop and length as the client is told, abort when it went away, error otherwise.",
            labels=["reason"],
        )
        for reason in FINISH_REASONS:
            finished.add_metric([reason], self._metrics.num_finished[reason])
        yield finished
        num_open = self._metrics.num_open
        yield GaugeMetricFamily(
            "pagewire_requests_open", "Generate and Complete calls from submission to end.", value=num_open
        )


class Metrics:
    """The router's metrics. Those with many lines are rendered beside the registry; see histogram.py."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rendered: list[Rendered] = []
        self.num_open = 0
        """Submitted requests that have not ended."""
        self.num_calls: Counter[tuple[str, str]] = Counter()
        """Calls that ended, by method and status, each one of METHODS and STATUSES."""
        self.num_finished: Counter[str] = Counter()
        """Sequences that ended, by one of FINISH_REASONS."""
        self.time_to_first_token_s = self._histogram(
            "time_to_first_token_seconds",
            "From the call's arrival until the first message with a token is written.",
            MILLISECOND_TO_MINUTES,
        )
        self.inter_token_s = self._histogram(
            "inter_token_latency_seconds",
            "Between tokens of a sequence as they are written; those of one message share its gap.",
            TENTH_OF_MILLISECOND_TO_SECONDS,
        )
        self.request_s = self._histogram(
            "request_latency_seconds", "From the call's arrival to the end of its last write.", MILLISECOND_TO_HOURS
        )
        self.admission_s = self._histogram(
            "admission_time_seconds",
            "From the call's arrival to the queue: checks, chat template, tokenizing.",
            TENTH_OF_MILLISECOND_TO_MINUTES,
        )
        self.queue_s = self._histogram(
            "queue_time_seconds",
            "From the queue to the first step plan that has the request, or to its end if none has.",
            TENTH_OF_MILLISECOND_TO_MINUTES,
        )
        self.prefill_s = self._histogram(
            "prefill_time_seconds",
            "From the first step plan that has the request until the first message with a token is written.",
            MILLISECOND_TO_MINUTES,
        )
        self.decode_s = self._histogram(
            "decode_time_seconds", "From the first message with a token to the end.", MILLISECOND_TO_HOURS
        )
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens of accepted requests.", TOKENS)
        self.generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens sampled for a request, over its sequences, when it ends.", TOKENS
        )
        self.loop_lag_s = self._histogram(
            "event_loop_lag_seconds",
            "How late the router's event loop runs what is due: while it is late, no token moves.",
            TENTH_OF_MILLISECOND_TO_SECONDS,
        )
        self.registry.register(_Counts(self))
        ProcessCollector(registry=self.registry)

    def add(self, collector: Collector, rendered: Iterable[Rendered] = ()) -> None:
        """Adds further metrics to the page."""
        self.registry.register(collector)
        self.rendered += rendered

    def count_refused(self, path: str, error: RouterError) -> None:
        """Counts a call that was refused before the service. Methods that callers make up are not counted."""
        method = path.rpartition("/")[2]
        if method in METHODS:
            self.num_calls[method, status_code(error).name] += 1

    def render(self) -> bytes:
        """The page that Prometheus scrapes."""
        return generate_latest(self.registry) + render(self.rendered).encode()

    def _histogram(self, name: str, documentation: str, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"pagewire_{name}", documentation, bounds)
        self.rendered.append(histogram)
        return histogram
