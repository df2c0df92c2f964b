"""A server's metrics as objects."""

import pytest
from pagewire import Unavailable
from pagewire.metrics import Counter, Gauge, Histogram, fetch_page, parse_metrics
from prometheus_client import CollectorRegistry, Info, Summary, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client import Gauge as PrometheusGauge
from prometheus_client import Histogram as PrometheusHistogram


def test_a_page_of_prometheus_client_becomes_objects():
    registry = CollectorRegistry()
    PrometheusGauge("waiting_count", "Its name ends as a histogram's part does.", registry=registry).set(2.5)
    tokens = PrometheusCounter("tokens", "By kind.", ["kind"], registry=registry)
    tokens.labels("prompt").inc(7)
    tokens.labels('a "b"\\').inc(1)
    seconds = PrometheusHistogram("wait_seconds", "By group.", ["group"], buckets=(0.1, 1), registry=registry)
    for group, value in (("0", 0.05), ("0", 0.5), ("0", 3), ("1", 0.5)):
        seconds.labels(group).observe(value)
    Info("build", "Of a type that is a gauge on the page.", registry=registry).info({"version": "1"})
    Summary("left_out", "Of another type.", registry=registry).observe(1)
    found = parse_metrics(generate_latest(registry).decode())
    assert [metric for metric in found if not metric.name.endswith("_created")] == [
        Gauge("waiting_count", {}, 2.5),
        Counter("tokens", {"kind": "prompt"}, 7.0),
        Counter("tokens", {"kind": 'a "b"\\'}, 1.0),
        Histogram("wait_seconds", {"group": "0"}, 3, 3.55, {"0.1": 1, "1.0": 2, "+Inf": 3}),
        Histogram("wait_seconds", {"group": "1"}, 1, 0.5, {"0.1": 0, "1.0": 1, "+Inf": 1}),
        Gauge("build_info", {"version": "1"}, 1.0),
    ]


def test_a_server_that_is_gone_is_named(tmp_path):
    with pytest.raises(Unavailable, match="metrics cannot be read"):
        fetch_page(str(tmp_path / "metrics.sock"))
