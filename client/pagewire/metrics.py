"""The metrics of a server as objects, with vLLM's classes."""

import http.client
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from pagewire.errors import Unavailable
from pagewire.top.exposition import read_samples, read_types

TIMEOUT_S = 30.0
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with one set of labels."""

    name: str
    """As /metrics has it, without the suffix of counters."""
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A number that only increases."""

    value: float


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A number that goes up and down."""

    value: float


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """Observations by size."""

    count: int
    """Number of observations."""
    sum: float
    """Their sum."""
    buckets: dict[str, int]
    """How many observations are at most as large, by that size; "+Inf": all of them."""


@dataclass(frozen=True, slots=True)
class Vector(Metric):
    """Counters in order. For programs written for vLLM: no metric of pagewire is one."""

    values: list[int]


def fetch_page(path: str) -> str:
    """Reads /metrics from a Unix socket. Raises Unavailable."""
    connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(TIMEOUT_S)
        connection.sock.connect(path)
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the server's metrics cannot be read: {error}") from None
    finally:
        connection.close()


def parse_metrics(text: str) -> list[Metric]:
    """The metrics of a page in Prometheus' text format, in its order. Series of other types are left out."""
    types = read_types(text)
    samples: dict[tuple[str, Labels], dict[str, float]] = {}
    for name, labels, value in read_samples(text):
        family = next((known for known in _families(name) if known in types), name)
        series = tuple(label for label in labels if label[0] != "le" or types.get(family) != "histogram")
        part = name.removeprefix(family)
        bound = dict(labels).get("le", "") if part == "_bucket" else ""
        samples.setdefault((family, series), {})[part + bound] = value
    return [
        metric
        for (family, labels), values in samples.items()
        if (metric := _metric(family, types.get(family, ""), dict(labels), values)) is not None
    ]


def _families(name: str) -> Iterator[str]:
    yield name
    for suffix in ("_bucket", "_count", "_sum"):
        if name.endswith(suffix):
            yield name.removesuffix(suffix)


def _metric(family: str, kind: str, labels: dict[str, str], values: dict[str, float]) -> Metric | None:
    if kind == "counter":
        return Counter(family.removesuffix("_total"), labels, values[""])
    if kind == "gauge":
        return Gauge(family, labels, values[""])
    if kind == "histogram":
        buckets = {part.removeprefix("_bucket"): int(n) for part, n in values.items() if part.startswith("_bucket")}
        return Histogram(family, labels, int(values["_count"]), values["_sum"], buckets)
    return None
