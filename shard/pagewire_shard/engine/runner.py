"""The seam between the engine's host state and the device: what a batch is, and what comes back.

The engine decides what runs; a Runner owns the device state (one row, or slot, for each sequence) and runs it. The
model runner is the real one; tests drive the engine with a runner whose model is a hash function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pagewire.v1 import shard_pb2

from pagewire_shard.engine.sequence import Sequence


@dataclass(slots=True)
class RunBatch:
    """One step's work. Lists over rows have one entry for each sequence that runs."""

    sequences: list[Sequence] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    query_lens: list[int] = field(default_factory=list)
    """Tokens that each row computes, draft tokens included."""
    sample_lens: list[int] = field(default_factory=list)
    """Most tokens that each row samples, from the logits of as many of its last positions: 0 if it does not catch up
    with its known tokens, else 1 and its draft tokens."""
    scored: list[int] = field(default_factory=list)
    """Rows that catch up with their known tokens and are scored: they have a sample_len of 0, and the most probable
    tokens behind them are returned."""
    max_seq_len: int = 0
    """Upper bound of the longest sequence, tokens of this step included."""
    table_updates: list[tuple[int, int, int]] = field(default_factory=list)
    """(slot, index, block): entries of block tables that change before the step."""
    other_table_updates: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(table, slot, index, block): the same in block tables from 1 on, of models with several."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """(source, destination): blocks to copy before the step. No block is both."""
    read_slots: list[int] = field(default_factory=list)
    """For each row the state slot that it reads; -1: its state is zero. Empty in models without recurrent state, and
    where no row has a state to begin with or to leave."""
    write_slots: list[int] = field(default_factory=list)
    """For each row the state slot that it writes: the one that it reads, or one that no other row reads or writes."""

    @property
    def is_decode(self) -> bool:
        """Whether there are rows, and each of them computes one token and samples or is scored."""
        if not self.slots or max(self.query_lens) > 1:
            return False
        return all(self.sample_lens) or self.sample_lens.count(0) == len(self.scored)

    @property
    def num_decodes(self) -> int:
        """Leading rows that compute one token."""
        if self.query_lens and max(self.query_lens) == min(self.query_lens) == 1:
            return len(self.query_lens)
        return next((row for row, num_new in enumerate(self.query_lens) if num_new != 1), len(self.query_lens))

    @classmethod
    def of(cls, rows: list[tuple[Sequence, int, int]]) -> "RunBatch":
        """A batch of rows: sequence, query_len, sample_len. The longest sequence is still to be set."""
        return cls(
            [sequence for sequence, _, _ in rows],
            [sequence.slot for sequence, _, _ in rows],
            [query_len for _, query_len, _ in rows],
            [sample_len for _, _, sample_len in rows],
        )

    def add(self, sequence: Sequence, query_len: int, sample_len: int, seq_len: int) -> None:
        """Adds a row; seq_len: upper bound of its sequence's length in this step."""
        self.sequences.append(sequence)
        self.slots.append(sequence.slot)
        self.query_lens.append(query_len)
        self.sample_lens.append(sample_len)
        if seq_len > self.max_seq_len:
            self.max_seq_len = seq_len


@dataclass(frozen=True, slots=True, eq=False)
class BatchMasks:
    """Which tokens the rows of a batch may sample."""

    bits: npt.NDArray[np.int32]
    """[num_masks, ceil(vocab_size / 32)], contiguous: token t is bit t % 32 of word t // 32."""
    rows: list[int]
    """For each row of the batch its mask; -1: it may sample every token."""


@dataclass(slots=True)
class StepTokens:
    """What a step brought, on the host. Lists have one entry for each row, unless said otherwise.

    Also the PendingTokens of a step whose tokens are on the host when it has been launched.
    """

    num_computed_tokens: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Known tokens, the sampled ones included."""
    stop_reasons: list["shard_pb2.StopReason.ValueType"] = field(default_factory=list)
    num_sampled: list[int] = field(default_factory=list)
    """Tokens that each row sampled, at most its sample_len. 0: it did not catch up with its known tokens, had stopped
    in an earlier step, or stops with STOP_REASON_ERROR."""
    sampled_token_ids: list[int] = field(default_factory=list)
    """The sampled tokens of all rows, concatenated."""
    logprobs: list[shard_pb2.SequenceLogprobs] = field(default_factory=list)
    """For each token of the rows that asked for them, in order; run_index is the row."""
    row_scores: list[shard_pb2.RowScores] = field(default_factory=list)
    """For each row that was scored, in order; run_index is the row."""
    prompt_scores: list[shard_pb2.PromptScores] = field(default_factory=list)
    """For each row that asked for them and computed prompt tokens, in order; run_index is the row."""
    row_failures: list[shard_pb2.RowFailure] = field(default_factory=list)
    """For each row that a logits processor ended, in order; run_index is the row."""
    forward_us: int = 0
    sample_us: int = 0

    def is_ready(self) -> bool:
        """Always True."""
        return True

    def wait(self) -> "StepTokens":
        """Itself."""
        return self


class PendingTokens(Protocol):
    """The tokens of a launched step, on their way to the host."""

    def is_ready(self) -> bool:
        """Whether wait would return at once."""

    def wait(self) -> StepTokens:
        """Blocks until the tokens are on the host."""


class Runner(Protocol):
    """Owns the device state and runs batches, in order."""

    samples: bool
    """It makes the logits: what masks and logits processors do is its concern. False: another stage of the pipeline
    samples, and what it yields comes from there."""

    def admit(self, sequence: Sequence) -> None:
        """Fills the sequence's slot: tokens, counts, block table, sampling, stop conditions."""

    def launch(self, batch: RunBatch) -> PendingTokens:
        """Runs one step: forward and sample."""

    def forward(self, batch: RunBatch) -> None:
        """Begins a step: changes the device state and runs the model. sample is to be called next."""

    def sample(self, batch: RunBatch, masks: BatchMasks | None = None) -> PendingTokens:
        """Ends the step that was begun: samples and appends. masks: which tokens rows may sample; None: all may all.
        They are copied before this returns."""

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """Has launch call on_progress now and then, such as after each layer."""

    def end_epoch(self) -> None:
        """Forgets sequences that were admitted and have not run."""
