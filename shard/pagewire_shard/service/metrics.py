"""The shard's Prometheus metrics: read from the step thread's counters when scraped, so that steps pay little."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pagewire.v1 import shard_pb2
from pagewire_common.histogram import render
from pagewire_common.version import version
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pagewire_shard.errors import StreamError
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.grammar.stats import OUTCOMES, GrammarStats
from pagewire_shard.service.execute_service import ExecuteService
from pagewire_shard.service.lease import Lease
from pagewire_shard.stepping.step_stats import StepStats

COUNTERS = (
    ("steps", "num_steps", "Steps that have finished, releases alone included."),
    ("failed_steps", "num_failed_steps", "Steps that broke with an unexpected error."),
    ("refused_plans", "num_refused_plans", "Plans that were refused as a whole."),
    ("computed_tokens", "num_computed_tokens", "Tokens whose keys and values were computed."),
    ("sampled_tokens", "num_sampled_tokens", "Tokens that were sampled."),
    (
        "prefix_cache_queried_tokens",
        "num_queried_tokens",
        "Known tokens of admitted sequences, new and resumed, whose prefix was looked up.",
    ),
    ("prefix_cache_hit_tokens", "num_hit_tokens", "Those of them that a cached prefix provided."),
    ("prefix_cache_blocks_added", "num_blocks_added", "Blocks that entered the prefix index."),
    ("prefix_cache_blocks_removed", "num_blocks_removed", "Blocks that left the prefix index, evicted mostly."),
)


GRAMMAR_GAUGES = (
    ("grammars_queued", "num_waiting", "Grammars that are being compiled, or wait for it."),
    ("grammars_cached", "num_cached", "Compiled grammars, in use or kept for later requests."),
    ("grammar_cache_bytes", "num_cached_bytes", "Memory of the compiled grammars."),
)


@dataclass(frozen=True, slots=True)
class OpenShard:
    """The parts of a shard that exist once the engine is built."""

    info: shard_pb2.ShardInfo
    lease: Lease
    service: ExecuteService
    grammars: Grammars | None


class ShardCollector(Collector):
    """Turns the shard's state into metrics."""

    def __init__(self, stats: StepStats, is_ready: Callable[[], bool]) -> None:
        self.opened: OpenShard | None = None
        """None while the model loads."""
        self._stats = stats
        self._is_ready = is_ready

    def collect(self) -> Iterator[Metric]:
        """Yields one sample of each metric."""
        for name, field, help_text in COUNTERS:
            yield CounterMetricFamily(f"pagewire_shard_{name}", help_text, value=getattr(self._stats, field))
        yield _gauge("ready", "1 if a plan would be run now: /readyz.", self._is_ready())
        yield _gauge("stalled_seconds", "For how long work has waited without progress.", self._stats.stalled_s())
        yield _gauge("prefix_cache_blocks", "Blocks in the prefix index.", self._stats.num_cached_blocks)
        if self.opened is not None:
            yield from self._info(self.opened.info)
            yield from self._pool(self.opened.info)
            yield from self._lease(self.opened.lease, self.opened.service)
            if self.opened.grammars is not None:
                yield from _grammars(self.opened.grammars.count())

    def _info(self, info: shard_pb2.ShardInfo) -> Iterator[Metric]:
        labels = {
            "version": version(),
            "group": info.group_id,
            "tp_rank": str(info.tp_rank),
            "tp_size": str(info.tp_size),
            "model": info.model,
            "digest": info.model_digest.hex(),
            "dtype": info.dtype,
            "device": info.device,
            "block_size": str(info.block_size),
        }
        family = GaugeMetricFamily("pagewire_shard_info", "1; the shard and what it serves.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        yield family
        yield _gauge("max_sequences", "Sequences that it can hold.", info.max_num_seqs)
        yield _gauge("max_step_tokens", "Tokens that a step may compute.", info.max_num_batched_tokens)

    def _pool(self, info: shard_pb2.ShardInfo) -> Iterator[Metric]:
        free = _by_cache_group("free_blocks", "Blocks that are free, cached ones that nobody uses included.")
        total = _by_cache_group("kv_cache_blocks", "Blocks in the pool.")
        usage = _by_cache_group("kv_cache_usage_ratio", "Share of the pool's blocks that sequences hold, 0 to 1.")
        free_blocks = self._stats.free_blocks or info.num_blocks
        for i, (num_free, num_blocks) in enumerate(zip(free_blocks, info.num_blocks, strict=True)):
            free.add_metric([str(i)], num_free)
            total.add_metric([str(i)], num_blocks)
            usage.add_metric([str(i)], 1 - num_free / num_blocks)
        yield from (free, total, usage)

    def _lease(self, lease: Lease, service: ExecuteService) -> Iterator[Metric]:
        yield _gauge("draining", "1 if the shard was told to stop.", service.is_draining)
        yield _gauge("lease_held", "1 if a router drives the shard.", lease.holder is not None)
        yield _gauge("lease_remaining_seconds", "Time until the lease lapses; 0 if nobody holds it.", lease.remaining_s)
        yield _gauge("epoch", "Counter of the last lease that was granted.", lease.epoch.counter)
        failures = CounterMetricFamily(
            "pagewire_shard_plan_stream_failures", "Plan streams that ended with an error.", labels=["reason"]
        )
        for reason in sorted(error.reason for error in StreamError.__subclasses__()):
            failures.add_metric([reason], service.num_failures[reason])
        yield failures


class ShardMetrics:
    """Renders one shard's metrics."""

    def __init__(self, stats: StepStats, is_ready: Callable[[], bool]) -> None:
        self._stats = stats
        self._collector = ShardCollector(stats, is_ready)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)

    def open(
        self, info: shard_pb2.ShardInfo, lease: Lease, service: ExecuteService, grammars: Grammars | None = None
    ) -> None:
        """The engine is built. grammars: None: they are not served."""
        self._collector.opened = OpenShard(info, lease, service, grammars)

    def render(self) -> bytes:
        """The Prometheus text format."""
        histograms = list(self._stats.histograms.all)
        if self._collector.opened is not None and self._collector.opened.grammars is not None:
            histograms.append(self._collector.opened.grammars.stats.prepare_s)
        return generate_latest(self._registry) + render(histograms).encode()


def _grammars(stats: GrammarStats) -> Iterator[Metric]:
    prepared = CounterMetricFamily(
        "pagewire_shard_grammars_prepared", "Prepares of grammars that were answered.", labels=["outcome"]
    )
    for outcome in OUTCOMES:
        prepared.add_metric([outcome], stats.num_prepared[outcome])
    yield prepared
    yield CounterMetricFamily(
        "pagewire_shard_grammar_process_starts",
        "Times that the process that compiles grammars was started: more than once if it was killed.",
        value=stats.num_process_starts,
    )
    for name, field, help_text in GRAMMAR_GAUGES:
        yield _gauge(name, help_text, getattr(stats, field))


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pagewire_shard_{name}", help_text, value=value)


def _by_cache_group(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pagewire_shard_{name}", help_text, labels=["cache_group"])
