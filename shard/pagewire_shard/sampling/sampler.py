"""Samples rows of logits. It owns the sampling columns of all slots, knows what the rows of a batch need, and calls the
kernels with it; a runner says only which slots the rows are of."""

from array import array
from collections.abc import Sequence as Items

import torch
from pagewire_kernels.sample import SamplingBatch, SamplingColumns, Stage, TokenMasks, most_probable, sample
from pagewire_kernels.sample.columns import LISTS, RARE_STAGES, list_column
from pagewire_kernels.sequence_state import SequenceState

from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.sampling.logprobs import RawLogits
from pagewire_shard.sampling.processing import LogitsProcessing
from pagewire_shard.sampling.row import SamplingRow, sampling_row
from pagewire_shard.sampling.scores import Scores
from pagewire_shard.slot_tables import SlotTables, Upload


class Sampler:
    """Samples for the slots of a device state."""

    def __init__(self, sequences: SequenceState, vocab_size: int) -> None:
        """Slots that nothing is admitted to take the most probable token."""
        num_slots = sequences.ints.shape[0]
        self._sequences = sequences
        self._vocab_size = vocab_size
        self._columns = columns = SamplingColumns.neutral(num_slots, vocab_size, sequences.ints.device)
        self._stages = [0] * num_slots
        """By slot: the stages that its sequence needs."""
        self._rare_slots: set[int] = set()
        """Slots whose sequences need RARE_STAGES."""
        self._num_logprobs: dict[int, int] = {}
        """By slot, for sequences that want log-probabilities: how many of the most probable tokens."""
        self._admitted: dict[int, SamplingRow] = {}
        """By slot: what the next fill writes."""
        self.processing: LogitsProcessing | None = None
        """Logits processors, which change logits between raw_logits and choose; None: there are none."""
        self.tables = (columns.floats, columns.ints, columns.lists, columns.allowed, columns.bad_words)
        """What SlotTables has to know of."""

    def admit(self, sequence: Sequence) -> None:
        """Has the next fill write the sequence's slot."""
        slot, params = sequence.slot, sequence.sampling_params
        row = self._admitted[slot] = sampling_row(sequence, self._vocab_size)
        self._stages[slot] = row.stages
        if row.stages & RARE_STAGES:
            self._rare_slots.add(slot)
        else:
            self._rare_slots.discard(slot)
        if params.HasField("logprobs"):
            self._num_logprobs[slot] = params.logprobs
        else:
            self._num_logprobs.pop(slot, None)

    def end_epoch(self) -> None:
        """Forgets what was admitted and has not been filled."""
        self._admitted.clear()

    def fill(self, tables: SlotTables) -> None:
        """Has the tables' next flush write what was admitted since the last call."""
        columns = self._columns
        for slot, row in self._admitted.items():
            tables.write(columns.floats, slot, row.floats)
            tables.write(columns.ints, slot, row.ints)
            for column, entries in zip(LISTS, row.lists, strict=True):
                first = list_column(column.name)
                tables.write(columns.lists, slot, list(entries), first)
                tables.write_bits(columns.lists, slot, array("f", entries.values()), first + column.max_entries)
            tables.write_bits(columns.allowed, slot, row.allowed)
            tables.write(columns.bad_words, slot, row.bad_words)
        self._admitted.clear()

    def stages(self, slots: Items[int]) -> Stage:
        """Returns the stages that the rows of a batch need, all together."""
        needed, of_slot = 0, self._stages
        for slot in slots:
            needed |= of_slot[slot]
        return Stage(needed)

    def has_rare_stages(self, slots: Items[int]) -> bool:
        """Whether some row of a batch needs RARE_STAGES."""
        return bool(self._rare_slots) and not self._rare_slots.isdisjoint(slots)

    def choose(
        self, logits: torch.Tensor, slots: torch.Tensor, stages: Stage, masks: TokenMasks | None = None
    ) -> torch.Tensor:
        """Calls the kernels alone: this can be part of a CUDA graph.

        Args:
            slots: [num_rows] int64.
            masks: The tokens that rows may sample; None: all rows any. A captured graph takes none.
            stages: At least what the rows need. On a GPU only which RARE_STAGES are among them matters.

        Returns:
            [num_rows] int64; -1: a row without a distribution.
        """
        if masks is not None:
            stages |= Stage.MASK
        return sample(logits, SamplingBatch(slots, self._sequences, self._columns, stages, masks))

    def score(
        self,
        logits: torch.Tensor,
        slots: Items[int],
        num_scores: int,
        upload: Upload,
        masks: TokenMasks | None = None,
    ) -> Scores:
        """Returns the most probable tokens of each row, at most num_scores; changes nothing.

        Args:
            logits: [num_rows, vocab_size], as the model gave them.
            slots: Each row's slot.
            masks: The tokens that rows may sample; None: all rows any.
        """
        batch = SamplingBatch(upload(slots), self._sequences, self._columns, masks=masks)
        return Scores(*most_probable(logits, batch, min(num_scores, self._vocab_size)))

    def raw_logits(
        self, logits: torch.Tensor, slots: Items[int], upload: Upload, sample_lens: Items[int] | None = None
    ) -> RawLogits | None:
        """Copies the logits of the rows that want log-probabilities; None: no row does. To be called before choose.

        Args:
            sample_lens: 0 of rows that do not sample, whose logits mean nothing; None: all sample.
        """
        wanting = self._num_logprobs
        rows = [row for row, slot in enumerate(slots) if slot in wanting] if wanting else []
        if sample_lens is not None:
            rows = [row for row in rows if sample_lens[row]]
        if not rows:
            return None
        index = upload(rows)
        return RawLogits(rows, [wanting[slots[row]] for row in rows], index, logits.index_select(0, index))
