"""Rules, alerts and dashboards work in a real Prometheus on the metrics of live routers and shards."""

import json
import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, eventually, free_port, shards_and_router
from dashboard_files import DASHBOARDS, RULE_FILES, alerts, panel_queries
from operate_tools import ROOT, set_up
from prometheus import PROMTOOL, Prometheus, prometheus

pytestmark = pytest.mark.operate

RULE_TESTS = Path(__file__).with_name("alert_rules.test.yaml")
SMALL_CACHE = ("--block-size", "16", "--kv-cache-memory", "3MiB", "--max-model-len", "512")
"""So small that the load of these tests preempts."""


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    set_up("prometheus")


@dataclass(frozen=True)
class Watched:
    """Two shards and a router under the eyes of Prometheus, and when they had load."""

    cluster: Cluster
    router_metrics_port: int
    prometheus: Prometheus
    start_s: float
    end_s: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory, port = tmp_path_factory.mktemp("prometheus"), free_port()
    flags = ("--metrics-port", str(port), "--http-port", "0")
    with shards_and_router(Path("demo"), *SMALL_CACHE, num_shards=2, router_flags=flags) as cluster:
        jobs = {"pagewire-router": [port], "pagewire-shard": cluster.metrics_ports}
        with prometheus(directory, jobs, RULE_FILES) as server:
            start_s = time.time()
            while time.time() < start_s + 20:
                load(cluster)
            yield Watched(cluster, port, server, start_s, time.time())


def load(cluster: Cluster) -> None:
    command = [
        *(sys.executable, "-m", "pagewire", "bench", "--server", cluster.address, "--no-progress"),
        *("--dataset-name", "shared-prefix", "--num-prefixes", "4", "--prefix-len", "64", "--random-input-len", "64"),
        *("--random-output-len", "128", "--num-prompts", "48", "--max-concurrency", "24", "--num-warmups", "0"),
    ]
    load_over_http(cluster)
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    load_over_http(cluster)


def load_over_http(cluster: Cluster) -> None:
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 8}).encode()
    url = f"http://{cluster.router.http_address()}/v1/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"})) as answer:
        answer.read()


def promtool(*arguments: str, stdin: str = "") -> None:
    run = subprocess.run([PROMTOOL, *arguments], input=stdin, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not (run.stdout + run.stderr).strip() or "SUCCESS" in run.stdout, run.stdout + run.stderr


def test_the_rules_are_valid():
    promtool("check", "rules", "--lint-fatal", *map(str, RULE_FILES))


def test_alerts_fire_when_they_should_and_only_then():
    promtool("test", "rules", str(RULE_TESTS))


def test_every_alert_is_tested_both_ways():
    tests = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    fires = {check["alertname"] for check in checks if check["exp_alerts"]}
    keeps_quiet = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert fires == keeps_quiet == {rule["alert"] for rule in alerts()}


def test_the_metrics_of_both_pass_promtool(watched):
    for port in (watched.router_metrics_port, *watched.cluster.metrics_ports):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            promtool("check", "metrics", stdin=response.read().decode())


def test_prometheus_evaluates_every_rule(watched):
    groups = watched.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in alerts()}
    assert [rule for rule in rules if rule["health"] == "err"] == []


def test_nothing_to_page_anyone_for_happened(watched):
    firing = [alert for alert in watched.prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]
    assert not [alert for alert in firing if alert["labels"]["severity"] == "critical"]


@pytest.mark.parametrize("query", panel_queries(), ids=str)
def test_every_panel_has_data(query, watched):
    start, end = watched.start_s + 5, watched.end_s
    result = watched.prometheus.get("query_range", query=query.expr, start=start, end=end, step=1)["result"]
    values = [float(value) for series in result for _, value in series["values"]]
    assert any(math.isfinite(value) for value in values), f"{query.expr}\n{result}"


def test_what_the_load_was_made_to_show_is_seen(watched):
    """Hits of the prefix cache, preemptions and what they cost: else panels about them would be tested on zeros."""
    for expr in (
        "sum(pagewire_shard_prefix_cache_hit_tokens_total)",
        "sum(pagewire_preemptions_total)",
        'sum(pagewire_tokens_total{kind="recomputed"})',
        "sum(pagewire_shard_prefix_cache_blocks_removed_total)",
    ):
        assert watched.prometheus.value(expr) > 0, expr


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sum(pagewire_group_kv_cache_blocks)", "sum(pagewire_shard_kv_cache_blocks)"),
        ("sum(pagewire_plan_round_trip_seconds_count)", "sum(pagewire_shard_steps_total)"),
        ('sum(pagewire_tokens_total{kind="generation"})', "sum(pagewire_request_generation_tokens_sum)"),
        ('sum(pagewire_tokens_total{kind=~"prompt_.*"})', "sum(pagewire_request_prompt_tokens_sum)"),
    ],
)
def test_what_is_counted_in_two_places_agrees(one, other, watched):
    value = watched.prometheus.value
    eventually(lambda: value(one) == value(other), f"{one} = {other}")


def test_dashboards_can_be_drawn(watched, tmp_path):
    command = [sys.executable, ROOT / "tools" / "plot_dashboards.py", watched.prometheus.url, str(tmp_path)]
    window = ["--start", str(watched.start_s), "--end", str(watched.end_s)]
    subprocess.run([*command, *window], check=True, capture_output=True, timeout=240)
    for path in DASHBOARDS:
        assert (tmp_path / f"dashboard-{path.stem}.png").stat().st_size > 10_000
        assert json.loads(path.read_text())["title"].startswith("pagewire")
