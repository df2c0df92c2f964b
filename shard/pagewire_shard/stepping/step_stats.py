"""What the step thread counts, for health and metrics."""

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
        """For rendering."""
        return (self.step_s, *self.part_s.values(), self.queue_s, self.num_sequences, self.num_tokens)

    def observe(self, timings: shard_pb2.StepTimings, num_sequences: int, num_tokens: int) -> None:
        """Takes in a step."""
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
    """Written by the step thread, read by anyone; each field is right by itself."""

    busy: bool = False
    """Commands or steps are being worked on."""
    progress_s: float = 0.0
    """time.monotonic() when a launch, a result or an epoch was last done with, or when work came to an idle thread."""
    asked_s: float | None = None
    """time.monotonic() when a command came that the step thread has not taken yet; None: it has taken all."""
    failed: bool = False
    """The last step broke with an unexpected error; cleared by the next one that works."""
    broken: bool = False
    """No epoch could begin when one last should: the device is gone, and only a new process may get it back."""
    num_steps: int = 0
    num_failed_steps: int = 0
    """Steps that broke with an unexpected error."""
    num_failed_in_a_row: int = 0
    """Of them, those since a step last worked, over epochs."""
    num_refused_plans: int = 0
    num_computed_tokens: int = 0
    num_sampled_tokens: int = 0
    num_queried_tokens: int = 0
    """Tokens of admitted sequences, whose prefix was looked up in the prefix index."""
    num_hit_tokens: int = 0
    """Those of them that it provided."""
    num_blocks_added: int = 0
    """Blocks that entered the prefix index."""
    num_blocks_removed: int = 0
    """Blocks that left it."""
    free_blocks: list[int] = field(default_factory=list)
    """For each cache group."""
    num_cached_blocks: int = 0
    histograms: StepHistograms = field(default_factory=StepHistograms)

    def stalled_s(self) -> float:
        """For how long work has waited without any progress, taken by the thread or not."""
        if self.busy:
            return time.monotonic() - self.progress_s
        asked_s = self.asked_s
        return 0.0 if asked_s is None else time.monotonic() - asked_s

    def add(self, result: shard_pb2.StepResult, *, num_tokens: int, num_queried_tokens: int) -> None:
        """Takes in a step that worked; num_tokens: what it computed, num_queried_tokens: what its plan admitted."""
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
