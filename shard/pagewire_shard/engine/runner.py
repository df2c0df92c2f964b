"""The seam between the engine's host state and the device: what a batch is, and what comes back.

The engine decides what runs; a Runner owns the device state (one row, or slot, for each sequence) and runs it. The
model runner is the real one; tests drive the engine with a runner whose model is a hash function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pagewire.v1 import shard_pb2

from pagewire_shard.engine.sequence import Sequence


@dataclass(slots=True)
class RunBatch:
    """One step's work. Lists over rows have one entry for each sequence that runs."""

    sequences: list[Sequence] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    query_lens: list[int] = field(default_factory=list)
    """New tokens of each row."""
    samples: list[bool] = field(default_factory=list)
    """The row catches up with its known tokens, so its last logits are sampled."""
    max_seq_len: int = 0
    """Longest sequence, new tokens included."""
    table_updates: list[tuple[int, int, int]] = field(default_factory=list)
    """(slot, index, block): entries of block tables that change before the step."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """(source, destination): blocks to copy before the step. No block is both."""

    @property
    def is_decode(self) -> bool:
        """Every row has one new token and samples, and there are rows."""
        return bool(self.slots) and all(self.samples) and max(self.query_lens) == 1

    @property
    def num_decodes(self) -> int:
        """Leading rows with one new token."""
        return next((row for row, num_new in enumerate(self.query_lens) if num_new != 1), len(self.query_lens))

    def add(self, sequence: Sequence, num_new: int, samples: bool) -> None:
        """Adds a row."""
        self.sequences.append(sequence)
        self.slots.append(sequence.slot)
        self.query_lens.append(num_new)
        self.samples.append(samples)
        if sequence.num_computed_tokens > self.max_seq_len:
            self.max_seq_len = sequence.num_computed_tokens


@dataclass(slots=True)
class StepTokens:
    """What a step brought, on the host. Lists have one entry for each row."""

    num_computed_tokens: list[int]
    num_tokens: list[int]
    """Known tokens, the sampled one included."""
    sampled: list[int]
    """The sampled token; -1: none, because the row did not sample or had stopped in an earlier step."""
    stop_reasons: list["shard_pb2.StopReason.ValueType"]
    logprobs: list[shard_pb2.SequenceLogprobs]
    """For rows that asked for them; run_index is the row."""
    forward_us: int = 0
    sample_us: int = 0


class PendingTokens(Protocol):
    """A launched step's tokens, on their way."""

    def is_ready(self) -> bool:
        """wait would not block."""

    def wait(self) -> StepTokens:
        """Blocks until the tokens are on the host."""


class Runner(Protocol):
    """Owns the device state and runs batches, in order."""

    def admit(self, sequence: Sequence) -> None:
        """Fills the sequence's slot: tokens, counts, block table, sampling, stop conditions."""

    def launch(self, batch: RunBatch) -> PendingTokens:
        """Runs one step."""

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """Has on_progress called while launch gets on."""

    def end_epoch(self) -> None:
        """Forgets what was admitted and has not run."""
