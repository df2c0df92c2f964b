"""Computes the reported figures of a benchmark from the arrival times of messages.

Definitions. A message is one Delta that carries tokens; a request's clock starts when it is sent.

ttft            time to first token: until the first message.
e2el            end-to-end latency: until the stream ended.
itl             gap between two messages of one request, however many tokens the second carries. This is what
                `vllm bench serve` reports under this name, and what a reader of the stream notices.
token_itl       that gap divided by the tokens of its second message, counted once for each of them: the pace of
                tokens, whether or not the server packs several into a message.
tpot            time per output token: from first to last message, divided by all tokens but one.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

DISTRIBUTIONS = ("ttft", "tpot", "itl", "token_itl", "e2el")
SLO_METRICS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class RequestOutcome:
    """Result of one request. Times are in seconds from the start of the run."""

    start_s: float
    end_s: float
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    message_times_s: tuple[float, ...] = ()
    message_tokens: tuple[int, ...] = ()
    """Number of tokens in each message, one entry for each of message_times_s."""
    text: str = ""
    error: str = ""
    """Message of the error; empty if the request completed."""

    @cached_property
    def num_output_tokens(self) -> int:
        """Tokens in all messages."""
        return sum(self.message_tokens)

    @property
    def ttft_s(self) -> float:
        """Time to first token; a request without tokens has none (nan)."""
        return self.message_times_s[0] - self.start_s if self.message_times_s else math.nan

    @property
    def e2el_s(self) -> float:
        """End-to-end latency."""
        return self.end_s - self.start_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 for a request of one token, as nobody waited for a second."""
        if self.num_output_tokens < 2:
            return 0.0
        return (self.message_times_s[-1] - self.message_times_s[0]) / (self.num_output_tokens - 1)

    @cached_property
    def itls_s(self) -> list[float]:
        """Gaps between messages."""
        return [later - earlier for earlier, later in pairwise(self.message_times_s)]

    @property
    def token_itls_s(self) -> list[float]:
        """Each gap divided by the number of tokens in the message that ended it, one entry for each token."""
        pairs = zip(self.itls_s, self.message_tokens[1:], strict=True)
        return [gap_s / count for gap_s, count in pairs for _ in range(count)]


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """A bound that a request must keep to count as good."""

    metric: str
    """The metric that is bounded, one of SLO_METRICS."""
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> "ServiceLevel":
        """Reads METRIC:MILLISECONDS, such as ttft:500.

        Raises:
            ValueError: the text is not of that form.
        """
        metric, _, limit = text.partition(":")
        try:
            limit_ms = float(limit)
        except ValueError:
            limit_ms = math.nan
        if metric not in SLO_METRICS or not limit_ms > 0:
            raise ValueError(f"expected {'|'.join(SLO_METRICS)}:MILLISECONDS, not {text!r}")
        return cls(metric, limit_ms)

    def kept_by(self, outcome: RequestOutcome) -> bool:
        """Returns whether the request stayed within the bound."""
        value_s: float = getattr(outcome, f"{self.metric}_s")
        return value_s * 1000 <= self.limit_ms


def percentile(ordered: Sequence[float], percent: float) -> float:
    """A percentile of values in ascending order, interpolated linearly between neighbours; 0 if there are none."""
    if not ordered:
        return 0.0
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize_ms(name: str, values_s: Iterable[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles in milliseconds, under keys such as p99_ttft_ms."""
    ordered = sorted(value * 1000 for value in values_s)
    summary = {
        f"mean_{name}_ms": statistics.fmean(ordered) if ordered else 0.0,
        f"median_{name}_ms": percentile(ordered, 50),
        f"std_{name}_ms": statistics.pstdev(ordered) if ordered else 0.0,
    }
    return summary | {f"p{percent:g}_{name}_ms": percentile(ordered, percent) for percent in percentiles}


def samples_s(outcomes: Sequence[RequestOutcome]) -> dict[str, list[float]]:
    """Every sample of each distribution, in seconds, over the requests that completed with tokens."""
    served = [outcome for outcome in outcomes if not outcome.error and outcome.num_output_tokens]
    return {
        "ttft": [outcome.ttft_s for outcome in served],
        "tpot": [outcome.tpot_s for outcome in served if outcome.num_output_tokens > 1],
        "itl": [gap_s for outcome in served for gap_s in outcome.itls_s],
        "token_itl": [gap_s for outcome in served for gap_s in outcome.token_itls_s],
        "e2el": [outcome.e2el_s for outcome in served],
    }


def max_concurrent_requests(outcomes: Iterable[RequestOutcome]) -> int:
    """Returns the largest number of requests that were open at the same time."""
    changes = [change for outcome in outcomes for change in ((outcome.start_s, 1), (outcome.end_s, -1))]
    peak = num_open = 0
    # Ends sort before starts at the same instant: such requests were not open together.
    for _, change in sorted(changes):
        num_open += change
        peak = max(peak, num_open)
    return peak


def tokens_per_second(outcomes: Iterable[RequestOutcome], duration_s: float) -> list[int]:
    """Returns how many output tokens arrived in each second of the run; the last second may be a part of one."""
    counts = [0] * max(1, math.ceil(duration_s))
    for outcome in outcomes:
        for time_s, num_tokens in zip(outcome.message_times_s, outcome.message_tokens, strict=True):
            counts[min(int(time_s), len(counts) - 1)] += num_tokens
    return counts


def compute_metrics(
    outcomes: Sequence[RequestOutcome],
    duration_s: float,
    percentiles: Sequence[float] = (50, 90, 99),
    service_levels: Sequence[ServiceLevel] = (),
) -> dict[str, float | int | None]:
    """The result of a run, with the key names of `vllm bench serve`.

    Args:
        duration_s: from the first request's arrival to the last one's end, above 0.
        service_levels: bounds that a request must keep to count for request_goodput, which is None without any.
    """
    completed = [outcome for outcome in outcomes if not outcome.error]
    num_input = sum(outcome.num_prompt_tokens for outcome in completed)
    num_output = sum(outcome.num_output_tokens for outcome in completed)
    good = [outcome for outcome in completed if all(level.kept_by(outcome) for level in service_levels)]
    result: dict[str, float | int | None] = {
        "duration": duration_s,
        "completed": len(completed),
        "failed": len(outcomes) - len(completed),
        "total_input_tokens": num_input,
        "total_cached_tokens": sum(outcome.num_cached_tokens for outcome in completed),
        "total_output_tokens": num_output,
        "total_messages": sum(len(outcome.message_times_s) for outcome in completed),
        "request_throughput": len(completed) / duration_s,
        "request_goodput": len(good) / duration_s if service_levels else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
        "max_output_tokens_per_s": max(tokens_per_second(completed, duration_s)),
        "max_concurrent_requests": max_concurrent_requests(outcomes),
    }
    for name, values_s in samples_s(outcomes).items():
        result |= summarize_ms(name, values_s, percentiles)
    return result
