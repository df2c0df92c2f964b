"""Prometheus histograms that are cheap to fill and to scrape, with bounds close enough for quantiles.

A process of ours has some thousand bucket lines. prometheus_client takes 6 us for each, during which no token moves;
here a line costs the join of two strings, since all but its number is written once.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Protocol

SERIES_E12 = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2)
"""Preferred numbers (IEC 60063): each at most 1.25 times the last, so that a quantile is at most a quarter off."""


def bounds_between(first_exponent: int, last_exponent: int) -> tuple[float, ...]:
    """Upper bounds from 10 ** first_exponent to 10 ** last_exponent, twelve for each decade."""
    exponents = range(first_exponent, last_exponent)
    return (*(float(f"{m}e{exponent}") for exponent in exponents for m in SERIES_E12), float(f"1e{last_exponent}"))


def bounds_of_counts(last_exponent: int) -> tuple[float, ...]:
    """Upper bounds for whole numbers, up to 10 ** last_exponent: every one of them to 8, then as bounds_between."""
    return (*(float(count) for count in range(1, 9)), *bounds_between(1, last_exponent))


class Rendered(Protocol):
    """What render() takes: metrics whose lines are written once but for their numbers."""

    name: str
    header: str
    """Its HELP and TYPE."""

    def lines(self) -> Iterator[str]:
        """The samples in the Prometheus text format."""


class Histogram:
    """Counts observations in buckets. One thread observes, any may render."""

    def __init__(
        self, name: str, documentation: str, bounds: tuple[float, ...], *, label: tuple[str, str] | None = None
    ) -> None:
        """label: name and value, where several histograms share a name."""
        self.name = name
        self.header = f"# HELP {name} {documentation}\n# TYPE {name} histogram\n"
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        pair = "" if label is None else f'{label[0]}="{label[1]}"'
        comma = "," if pair else ""
        braces = f"{{{pair}}}" if pair else ""
        self._line_starts = [f'{name}_bucket{{{pair}{comma}le="{bound}"}} ' for bound in [*map(repr, bounds), "+Inf"]]
        self._count_start, self._sum_start = f"{name}_count{braces} ", f"{name}_sum{braces} "

    def observe(self, value: float, count: int = 1) -> None:
        """Counts a value, count times. About 0.3 us, however many."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """Sum of all observations so far."""
        return self._sum

    def lines(self) -> Iterator[str]:
        """The histogram's samples in the Prometheus text format."""
        total = 0
        for start, count in zip(self._line_starts, self._counts, strict=True):
            total += count
            yield f"{start}{total}\n"
        yield f"{self._count_start}{total}\n"
        yield f"{self._sum_start}{self._sum!r}\n"


def render(metrics: Iterable[Rendered]) -> str:
    """The Prometheus text format of metrics; those that share a name stand together."""
    parts: list[str] = []
    last_name = ""
    for metric in metrics:
        if metric.name != last_name:
            parts.append(metric.header)
            last_name = metric.name
        parts.extend(metric.lines())
    return "".join(parts)
