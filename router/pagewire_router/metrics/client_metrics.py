"""Metrics by client, for those that have limits of their own by name; all others are counted together."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

OTHERS = "others"
"""The label of clients without a table of their own in the file of limits."""
OUTCOMES = ("accepted", "too_many_at_a_time", "too_many_requests", "too_many_tokens")
"""What becomes of a request: it is accepted, or refused by one of the limits."""
TOKENS = ("prompt", "generation")


class ClientMetrics(Collector):
    """Requests and tokens by the names of clients. Names come from the operator, so that they are few."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        """Clients that are counted by name."""
        self.num_requests: Counter[tuple[str, str]] = Counter()
        """By client and one of OUTCOMES."""
        self.num_tokens: Counter[tuple[str, str]] = Counter()
        """By client and one of TOKENS."""
        self.num_open: Counter[str] = Counter()

    def label(self, name: str) -> str:
        """What a client is called in metrics."""
        return name if name in self.names else OTHERS

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        clients = (*self.names, OTHERS)
        requests = CounterMetricFamily(
            "pagewire_client_requests",
            "Generate and Complete calls of clients, accepted or refused by a limit.",
            labels=["client", "outcome"],
        )
        tokens = CounterMetricFamily(
            "pagewire_client_tokens",
            "Tokens of the clients' prompts, and tokens generated for them.",
            labels=["client", "kind"],
        )
        num_open = GaugeMetricFamily("pagewire_client_requests_open", "Accepted requests at work.", labels=["client"])
        for client in clients:
            for outcome in OUTCOMES:
                requests.add_metric([client, outcome], self.num_requests[client, outcome])
            for kind in TOKENS:
                tokens.add_metric([client, kind], self.num_tokens[client, kind])
            num_open.add_metric([client], self.num_open[client])
        yield from (requests, tokens, num_open)
