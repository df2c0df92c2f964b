"""Reads /metrics pages in Prometheus' text format, which the base install has no library for."""

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(?P<name>\w+)="(?P<value>(?:[^"\\]|\\.)*)"')
_TYPE = re.compile(r"# TYPE \S+ \w+$")
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
DEFAULT_PORT = 9400


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one page."""

    time_s: float
    """When it was read, by time.monotonic()."""
    samples: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]
    """Values by metric and labels."""

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; 0 if there are none."""
        wanted = labels.items()
        return sum(value for found, value in self.samples.get(name, {}).items() if wanted <= dict(found).items())

    def labels(self, name: str, label: str) -> list[str]:
        """The values of a label, in the order of the page."""
        found = [dict(labels).get(label) for labels in self.samples.get(name, {})]
        return list(dict.fromkeys(value for value in found if value is not None))


class UnreadablePage(Exception):
    """A page cannot be had; the message says why."""


def url_of(address: str) -> str:
    """The page's URL: `address` is one, or a host with or without a port."""
    if "://" in address:
        return address if address.count("/") > 2 else f"{address}/metrics"
    has_port = re.search(r":\d+$", address) and (address.count(":") == 1 or "]" in address)
    return f"http://{address if has_port else f'{address}:{DEFAULT_PORT}'}/metrics"


def read_page(url: str, timeout_s: float) -> Page:
    """Fetches and reads a page. Raises UnreadablePage."""
    try:
        # No proxy of the environment: routers are within reach.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=timeout_s) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        raise UnreadablePage(f"answers {error.code}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UnreadablePage(str(getattr(reason, "strerror", None) or reason)) from None
    return parse_page(text, time.monotonic())


def parse_page(text: str, time_s: float) -> Page:
    """The samples of a page's text. Lines that are no samples are passed over."""
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for name, labels, value in read_samples(text):
        samples.setdefault(name, {})[labels] = value
    return Page(time_s, samples)


def read_samples(text: str) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
    """Yields name, labels and value of each sample of a page's text."""
    for line in text.split("\n"):
        match = _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        yield match["name"], tuple(_labels(match["labels"] or "")), value


def read_types(text: str) -> dict[str, str]:
    """The types of a page's metrics by their names, as its lines of TYPE say."""
    return {line.split(" ")[2]: line.split(" ")[3] for line in text.split("\n") if _TYPE.match(line)}


def _labels(text: str) -> Iterator[tuple[str, str]]:
    for match in _LABEL.finditer(text):
        yield match["name"], re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), match["value"])
