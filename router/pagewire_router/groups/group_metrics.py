"""Metrics of the shard groups and their schedulers. They are read when they are scraped, so that steps pay nothing."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagewire_router.groups.group_loop import GroupLoop
from pagewire_router.groups.step_stats import StepStats

GROUP_GAUGES: tuple[tuple[str, str, Callable[[GroupLoop], float]], ...] = (
    ("serving", "1 if the lease is held and step plans flow.", lambda group: group.is_serving),
    ("draining", "1 if a shard of the group is about to stop.", lambda group: group.is_draining),
    ("epoch", "Counter of the last lease that the group's shards granted.", lambda group: group.epoch),
    ("requests_running", "Requests admitted to the group.", lambda group: len(group.scheduler.running)),
    ("sequences_running", "Sequences admitted to the group.", lambda group: group.scheduler.num_running_sequences),
    ("requests_queued", "Requests that wait for the group.", lambda group: group.num_waiting),
    (
        "tokens_queued",
        "Tokens that the requests that wait for it have come with.",
        lambda group: group.scheduler.num_waiting_tokens,
    ),
    ("plans_inflight", "Step plans whose results are not back.", lambda group: group.scheduler.num_inflight),
    ("kv_cache_blocks", "Blocks in the group's pool.", lambda group: group.scheduler.limits.num_blocks),
    ("kv_cache_usage_ratio", "Share of the pool's blocks that sequences hold.", lambda group: usage_of([group])),
)
GROUP_COUNTERS = (
    ("preemptions", "Requests put back to wait for want of blocks."),
    ("failovers", "Plan streams that broke."),
    ("digest_mismatches", "Steps after which ranks of a group disagreed."),
)
TOKEN_KINDS = ("prompt_computed", "prompt_cached", "generation", "recomputed")


class GroupMetrics(Collector):
    """Metrics of each shard group, and of all groups together."""

    def __init__(self, groups: Sequence[GroupLoop], stats: StepStats) -> None:
        """`groups` may still grow."""
        self._groups = groups
        self._stats = stats
        self._earlier: dict[str, Counter[str]] = {}
        """Counts of retired groups, by group id."""

    def on_retired(self, group: GroupLoop) -> None:
        """Keeps the counts of a retired group. A later group with the same id counts on from them."""
        self._earlier.setdefault(group.info.group_id, Counter()).update(_counts_of(group))

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        yield from self._totals()
        yield from self._model()
        parts = CounterMetricFamily(
            "pagewire_step_seconds", "Time of steps as the shards report it, by part.", labels=["part"]
        )
        for part, seconds in self._stats.shard_s.items():
            parts.add_metric([part], seconds)
        yield parts
        for name, documentation, read in GROUP_GAUGES:
            gauge = GaugeMetricFamily(f"pagewire_group_{name}", documentation, labels=["group"])
            for group in self._groups:
                gauge.add_metric([group.info.group_id], read(group))
            yield gauge
        yield from self._counters()

    def _counters(self) -> Iterator[Metric]:
        """Counters by group. A sum over groups would fall when a group leaves, and counters must not fall."""
        tokens = CounterMetricFamily(
            "pagewire_tokens",
            "Tokens by kind: of prompts, computed or found in the prefix cache; sampled; computed again after a "
            "preemption or a failover.",
            labels=["group", "kind"],
        )
        others = {
            name: CounterMetricFamily(f"pagewire_{name}", documentation, labels=["group"])
            for name, documentation in GROUP_COUNTERS
        }
        for group in self._groups:
            group_id = group.info.group_id
            counts = Counter(_counts_of(group))
            counts.update(self._earlier.get(group_id, {}))
            for kind in TOKEN_KINDS:
                tokens.add_metric([group_id, kind], counts[kind])
            for name, family in others.items():
                family.add_metric([group_id], counts[name])
        yield from (tokens, *others.values())

    def _totals(self) -> Iterator[Metric]:
        """Gauges of the server as a whole, for gateways and autoscalers."""
        schedulers = [group.scheduler for group in self._groups]
        for name, documentation, value in (
            ("requests_queued", "Requests that wait to be admitted.", sum(s.num_waiting for s in schedulers)),
            ("requests_running", "Requests admitted to shard groups.", sum(len(s.running) for s in schedulers)),
            (
                "tokens_queued",
                "Tokens that the requests that wait have come with.",
                sum(s.num_waiting_tokens for s in schedulers),
            ),
            ("kv_cache_usage_ratio", "Share of all blocks that sequences hold, 0 to 1.", usage_of(self._groups)),
        ):
            yield GaugeMetricFamily(f"pagewire_{name}", documentation, value=value)

    def _model(self) -> Iterator[Metric]:
        model = GaugeMetricFamily(
            "pagewire_model_info",
            "1; what is served. num_gpu_blocks: blocks of all groups' pools, on whatever device.",
            labels=["model", "digest", "architecture", "dtype", "max_model_len", "block_size", "num_gpu_blocks"],
        )
        if self._groups:
            info = self._groups[0].info
            num_blocks = sum(group.scheduler.limits.num_blocks for group in self._groups)
            sizes = [str(number) for number in (info.max_model_len, info.block_size, num_blocks)]
            model.add_metric([info.model, info.model_digest.hex(), info.architecture, info.dtype, *sizes], 1)
        yield model


def _counts_of(group: GroupLoop) -> dict[str, int]:
    """Counts of a group by the names of GROUP_COUNTERS and TOKEN_KINDS."""
    tokens = group.scheduler.tokens
    return {
        "preemptions": group.scheduler.num_preemptions,
        "failovers": group.num_failovers,
        "digest_mismatches": group.digests.num_mismatches,
        "prompt_computed": tokens.prompt_computed,
        "prompt_cached": tokens.prompt_cached,
        "generation": tokens.generated,
        "recomputed": tokens.recomputed,
    }


def usage_of(groups: Sequence[GroupLoop]) -> float:
    """Share of the blocks of the groups that serve that sequences hold; 0 if none serves."""
    serving = [group.scheduler for group in groups if group.is_serving]
    num_blocks = sum(scheduler.limits.num_blocks for scheduler in serving)
    return 1 - sum(scheduler.free_blocks for scheduler in serving) / num_blocks if num_blocks else 0.0
