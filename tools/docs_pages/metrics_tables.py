"""The tables of docs/metrics.md: read from the /metrics pages of a router and a shard that stand idle here."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from pagewire.v1 import shard_pb2
from pagewire_common.health_state import HealthState
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from docs_pages.markdown import between, cell, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
INFO = shard_pb2.ShardInfo(
    group_id="0", model="demo", block_size=16, num_blocks=[1024], max_num_seqs=8, max_num_batched_tokens=64
)


def page() -> str:
    """Returns docs/metrics.md with current tables."""
    text = PAGE.read_text()
    for name, metrics in (("router metrics", router_metrics()), ("shard metrics", shard_metrics())):
        families = sorted(text_string_to_metric_families(metrics), key=lambda family: family.name.startswith("process"))
        rows = map(_row, families)
        text = between(text, name, table(("metric", "type", "labels", "meaning"), rows), PAGE)
    return text


def router_metrics() -> str:
    """Returns the /metrics page of a router with one shard group."""
    from pagewire_router.config import RouterConfig
    from pagewire_router.groups.group_loop import GroupLoop
    from pagewire_router.groups.group_metrics import GroupMetrics
    from pagewire_router.groups.step_stats import StepStats
    from pagewire_router.http_front.front import metrics_of_routes
    from pagewire_router.metrics.client_metrics import ClientMetrics
    from pagewire_router.metrics.pacing_metrics import PacingMetrics
    from pagewire_router.metrics.request_metrics import Metrics
    from pagewire_router.metrics.server_metrics import ServerMetrics
    from pagewire_router.output.pacer import Pacer
    from pagewire_router.output.write_budget import WriteBudget

    stats = StepStats()
    group = GroupLoop(
        [], INFO, router_id="", max_inflight=2, on_change=lambda _: None, on_step=lambda _result, _seconds: None
    )
    metrics = Metrics()
    metrics.add(ServerMetrics(RouterConfig(shards=("shard:50052",)), lambda: HealthState.IDLE))
    metrics.add(ClientMetrics())
    metrics.add(PacingMetrics(Pacer(asyncio.new_event_loop(), max_floor_s=0.05, budget=WriteBudget())))
    http = metrics_of_routes(has_page=True)
    metrics.add(http, http.rendered)
    metrics.add(GroupMetrics([group], stats), [stats.round_trip_s])
    return metrics.render().decode()


def shard_metrics() -> str:
    """Returns the /metrics page of a shard that serves."""
    return asyncio.run(_shard_metrics())


async def _shard_metrics() -> str:
    from pagewire_shard.grammar.grammars import Grammars
    from pagewire_shard.service.execute_service import ExecuteService
    from pagewire_shard.service.lease import Lease
    from pagewire_shard.service.metrics import ShardMetrics
    from pagewire_shard.service.preparations import Preparations
    from pagewire_shard.stepping.step_thread import StepThread

    def never_built() -> NoReturn:
        raise AssertionError("the thread is not started")

    steps = StepThread(never_built)
    lease = Lease(incarnation=1, term_s=10.0, clock=time.monotonic)
    metrics = ShardMetrics(steps.stats, lambda: True)
    grammars = Grammars()
    metrics.open(INFO, lease, ExecuteService(steps, INFO, lease, Preparations(grammars)), grammars)
    return metrics.render().decode()


def _row(family: Metric) -> tuple[str, str, str, str]:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    kind = f"{family.type}, {_range(family)}" if family.type == "histogram" else family.type
    return f"`{name}`", kind, "; ".join(_labels(family)), cell(family.documentation)


def _range(family: Metric) -> str:
    bounds = [float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")]
    low, high = min(bounds), max(bound for bound in bounds if bound != float("inf"))
    return f"{low:g} to {high:g}{' s' if family.name.endswith('_seconds') else ''}"


def _labels(family: Metric) -> Iterator[str]:
    """The labels; with their values if these are a fixed few."""
    names = {label: None for sample in family.samples for label in sample.labels if label != "le"}
    for name in names:
        values = list(dict.fromkeys(sample.labels[name] for sample in family.samples))
        listed = f": {', '.join(values)}" if len(values) > 1 else ""
        yield f"`{name}`{listed}"
