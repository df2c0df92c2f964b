"""What two pages of one router say of the time between them, and what several routers do together."""

from collections.abc import Sequence
from dataclasses import dataclass

from pagewire.top.exposition import Page


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """One shard group, as the router sees it that drives it."""

    id: str
    is_serving: bool
    is_draining: bool
    num_running: int
    """Requests."""
    num_queued: int
    """Requests."""
    cache_ratio: float
    """Share of the blocks in use."""
    generated_per_s: float
    """Tokens."""
    prompts_per_s: float
    """Prompt tokens that were computed."""
    cached_per_s: float
    """Prompt tokens that were found in the cache."""


@dataclass(frozen=True, slots=True)
class RouterFigures:
    """One router."""

    address: str
    problem: str = ""
    """Why its page could not be read; empty if it was. The other fields are then empty."""
    model: str = ""
    is_ready: bool = False
    is_draining: bool = False
    num_running: int = 0
    num_queued: int = 0
    cache_ratio: float = 0.0
    finished_per_s: float = 0.0
    """Sequences."""
    first_token_s: float | None = None
    """Mean time to first token, of requests whose first token went out; None: there was none."""
    inter_token_s: float | None = None
    """Mean time between tokens."""
    groups: tuple[GroupFigures, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """All routers together."""

    num_running: int
    num_queued: int
    cache_ratio: float
    """Of the router whose cache is fullest."""
    generated_per_s: float


def router_figures(address: str, page: Page, before: Page | None) -> RouterFigures:
    """The figures of a router. Rates and means are of the time since `before`; without it they are 0 or None."""
    models = page.labels("pagewire_model_info", "model")
    return RouterFigures(
        address,
        model=models[0] if models else "",
        is_ready=page.value("pagewire_ready") > 0,
        is_draining=page.value("pagewire_draining") > 0,
        num_running=int(page.value("pagewire_requests_running")),
        num_queued=int(page.value("pagewire_requests_queued")),
        cache_ratio=page.value("pagewire_kv_cache_usage_ratio"),
        finished_per_s=_rate(page, before, "pagewire_sequences_finished_total"),
        first_token_s=_mean(page, before, "pagewire_time_to_first_token_seconds"),
        inter_token_s=_mean(page, before, "pagewire_inter_token_latency_seconds"),
        groups=tuple(_group(page, before, group) for group in page.labels("pagewire_group_serving", "group")),
    )


def _group(page: Page, before: Page | None, group: str) -> GroupFigures:
    tokens = {
        kind: _rate(page, before, "pagewire_tokens_total", group=group, kind=kind)
        for kind in ("generation", "prompt_computed", "prompt_cached")
    }
    return GroupFigures(
        group,
        is_serving=page.value("pagewire_group_serving", group=group) > 0,
        is_draining=page.value("pagewire_group_draining", group=group) > 0,
        num_running=int(page.value("pagewire_group_requests_running", group=group)),
        num_queued=int(page.value("pagewire_group_requests_queued", group=group)),
        cache_ratio=page.value("pagewire_group_kv_cache_usage_ratio", group=group),
        generated_per_s=tokens["generation"],
        prompts_per_s=tokens["prompt_computed"],
        cached_per_s=tokens["prompt_cached"],
    )


def _rate(page: Page, before: Page | None, name: str, **labels: str) -> float:
    """Increase of a counter for each second. A counter that fell began anew with its process."""
    if before is None or page.time_s <= before.time_s:
        return 0.0
    return max(0.0, page.value(name, **labels) - before.value(name, **labels)) / (page.time_s - before.time_s)


def _mean(page: Page, before: Page | None, name: str) -> float | None:
    """Mean of a histogram's values since the page before."""
    if before is None:
        return None
    count = page.value(f"{name}_count") - before.value(f"{name}_count")
    total = page.value(f"{name}_sum") - before.value(f"{name}_sum")
    return total / count if count > 0 and total >= 0 else None


def driven_groups(routers: Sequence[RouterFigures]) -> list[tuple[RouterFigures, GroupFigures]]:
    """Each group once, with the router that drives it, or the first that knows it."""
    found: dict[str, tuple[RouterFigures, GroupFigures]] = {}
    for router in routers:
        for group in router.groups:
            if group.id not in found or (group.is_serving and not found[group.id][1].is_serving):
                found[group.id] = (router, group)
    return [found[key] for key in sorted(found, key=lambda key: (len(key), key))]


def totals(routers: Sequence[RouterFigures]) -> Totals:
    """The figures of all routers together."""
    return Totals(
        num_running=sum(router.num_running for router in routers),
        num_queued=sum(router.num_queued for router in routers),
        cache_ratio=max((router.cache_ratio for router in routers), default=0.0),
        generated_per_s=sum(group.generated_per_s for router in routers for group in router.groups),
    )
