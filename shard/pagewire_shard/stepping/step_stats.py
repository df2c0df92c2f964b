"""Counters of the step thread, for health and metrics."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pagewire.v1 import shard_pb2
from pagewire_common.histogram import Histogram, bounds_between, bounds_of_counts

PARTS = ("prepare", "forward", "sample")


class StepHistograms:
    """Distributions over the steps that ran a sequence; releases alone would hide in the lowest buckets."""

    def __init__(self) -> None:
        durations = bounds_between(-5, 1)
        self.step_s = Histogram("pagewire_shard_step_seconds", "Time of a step, all parts.", durations)
        self.part_s = {
            part: Histogram(
                "pagewire_shard_step_part_seconds",
                "Time of a step by part: prepare applies the plan, forward runs the model, sample brings tokens back.",
                durations,
                label=("part", part),
            )
            for part in PARTS
        }
        self.queue_s = Histogram(
            "pagewire_shard_plan_queue_seconds", "From a plan's arrival to its launch.", bounds_between(-5, 2)
        )
        self.num_sequences = Histogram(
            "pagewire_shard_step_sequences", "Sequences that a step runs.", bounds_of_counts(4)
        )
        self.num_tokens = Histogram("pagewire_shard_step_tokens", "Tokens that a step computes.", bounds_of_counts(5))

    @property
    def all(self) -> Sequence[Histogram]:
        """All histograms, for rendering."""
        return (self.step_s, *self.part_s.values(), self.queue_s, self.num_sequences, self.num_tokens)

    def observe(self, timings: shard_pb2.StepTimings, num_sequences: int, num_tokens: int) -> None:
        """Counts a step."""
        prepare_s, forward_s, sample_s = timings.prepare_us * 1e-6, timings.forward_us * 1e-6, timings.sample_us * 1e-6
        self.step_s.observe(prepare_s + forward_s + sample_s)
        self.part_s["prepare"].observe(prepare_s)
        self.part_s["forward"].observe(forward_s)
        self.part_s["sample"].observe(sample_s)
        self.queue_s.observe(timings.queue_us * 1e-6)
        self.num_sequences.observe(num_sequences)
        self.num_tokens.observe(num_tokens)


@dataclass(slots=True)
class StepStats:
    """Counters that the step thread writes and any thread reads. Each field by itself is consistent."""

    busy: bool = False
    """Whether the thread works on commands or steps."""
    progress_s: float = 0.0
    """time.monotonic() at the last end of a launch, a result or an epoch, or when work came to an idle thread."""
    asked_s: float | None = None
    """time.monotonic() when a command came that the step thread has not taken yet; None: it has taken all."""
    failed: bool = False
    """Whether the last step broke with an unexpected error."""
    broken: bool = False
    """Whether the last attempt to begin an epoch failed: the device is gone, and only a new process may get it back."""
    num_steps: int = 0
    num_failed_steps: int = 0
    """Steps that broke with an unexpected error."""
    num_failed_in_a_row: int = 0
    """Failed steps since a step last worked, over epochs."""
    num_refused_plans: int = 0
    num_computed_tokens: int = 0
    num_sampled_tokens: int = 0
    num_queried_tokens: int = 0
    """Tokens of admitted sequences, whose prefix was looked up in the prefix index."""
    num_hit_tokens: int = 0
    """Queried tokens that the prefix index provided."""
    num_blocks_added: int = 0
    """Blocks that entered the prefix index."""
    num_blocks_removed: int = 0
    """Blocks that left the prefix index."""
    free_blocks: list[int] = field(default_factory=list)
    """Free blocks of each cache group."""
    num_cached_blocks: int = 0
    histograms: StepHistograms = field(default_factory=StepHistograms)

    def stalled_s(self) -> float:
        """Returns how long work has waited without progress, whether the thread has taken it or not."""
        if self.busy:
            return time.monotonic() - self.progress_s
        asked_s = self.asked_s
        return 0.0 if asked_s is None else time.monotonic() - asked_s

    def add(self, result: shard_pb2.StepResult, *, num_tokens: int, num_queried_tokens: int) -> None:
        """Counts a step that worked. num_tokens: computed by it; num_queried_tokens: admitted by its plan."""
        self.failed = False
        if num_tokens:
            self.num_failed_in_a_row = 0
        self.num_steps += 1
        self.num_computed_tokens += num_tokens
        self.num_sampled_tokens += len(result.sampled_token_ids)
        self.num_queried_tokens += num_queried_tokens
        self.num_hit_tokens += sum(result.num_cached_tokens)
        num_added, num_removed = len(result.cache_hashes_added), len(result.cache_hashes_removed)
        self.num_blocks_added += num_added
        self.num_blocks_removed += num_removed
        self.num_cached_blocks += num_added - num_removed
        self.free_blocks = list(result.free_blocks)
        if num_tokens:
            self.histograms.observe(result.timings, len(result.num_computed_tokens), num_tokens)
