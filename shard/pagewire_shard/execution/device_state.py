"""The device's memory of every sequence: one row, or slot, for each.

A step sends up only slots and query lengths; tokens, positions and block tables are read from here, as the sampling
parameters are from the sampler's columns, and sampled tokens, counts and stops are written back here, so that step
k + 1 can start before the host has seen step k's tokens.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from pagewire_common.protocol import MAX_STOP_TOKENS
from pagewire_kernels.sequence_state import SequenceState, StateColumns

from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.slot_tables import SlotTables

# Columns of `ints`.
NUM_TOKENS, NUM_COMPUTED, STOP_REASON, MAX_LEN = range(4)

VOID = -1
"""The stop reason of the void slot: no sequence's, and like theirs not 0."""

_COLUMNS = StateColumns(num_tokens=NUM_TOKENS, num_computed=NUM_COMPUTED, stop_reason=STOP_REASON, max_len=MAX_LEN)


@dataclass(frozen=True, slots=True, eq=False)
class SlotRow:
    """Values that a slot is filled with: those of a sequence when it was admitted."""

    slot: int
    token_ids: list[int]
    blocks: list[int]
    ints: list[int]
    stop_token_ids: list[int]
    other_blocks: list[list[int]]
    """The blocks of each other table."""


class DeviceState:
    """Preallocated rows for num_slots sequences of at most max_model_len tokens, and one that is always void.

    A batch that is padded points its padding at the void slot. Rows of that slot behave as those of a sequence that has
    stopped: they write to no cache, sample nothing and change no count.
    """

    def __init__(
        self,
        num_slots: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        table_parts: Items[int] = (1,),
    ) -> None:
        """table_parts: of each block table of a sequence; see layers/cache_layout.py."""
        self.device = device
        self.num_slots = num_slots
        self.max_model_len = max_model_len
        num_rows = num_slots + 1
        # One column more than a sequence can fill: a row that has stopped writes its void token there.
        self.token_ids = torch.zeros(num_rows, max_model_len + 1, dtype=torch.int32, device=device)
        """[num_slots + 1, max_model_len + 1]: known tokens; beyond num_tokens arbitrary."""
        max_blocks = -(-max_model_len // block_size)
        self.block_tables = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device)
        """[num_slots + 1, max_blocks]: block ids in order; beyond the sequence's blocks arbitrary."""
        self.other_block_tables = [torch.zeros_like(self.block_tables) for _ in table_parts[1:]]
        """The same for each table but the first."""
        self._table_parts = tuple(table_parts)
        """By table: its caches' blocks within one block of the pool. Their ids are so many times the pool's."""
        self.ints = torch.zeros(num_rows, 4, dtype=torch.int64, device=device)
        """[num_slots + 1, 4]: counts and limits; columns above."""
        self.stop_token_ids = torch.full((num_rows, MAX_STOP_TOKENS), -1, dtype=torch.int32, device=device)
        """[num_slots + 1, MAX_STOP_TOKENS]: padded with -1."""
        self.ints[self.void_slot, STOP_REASON] = VOID
        self.sequences = SequenceState(
            ints=self.ints,
            token_ids=self.token_ids,
            block_tables=self.block_tables,
            stop_token_ids=self.stop_token_ids,
            columns=_COLUMNS,
        )
        """The same tensors in the form that the kernels take."""
        self.others = [replace(self.sequences, block_tables=tables) for tables in self.other_block_tables]
        """The same with each of the other block tables."""
        self.tables = (
            self.token_ids,
            self.block_tables,
            self.ints,
            self.stop_token_ids,
            *self.other_block_tables,
        )
        """What SlotTables has to know of."""

    @property
    def void_slot(self) -> int:
        """The last row."""
        return self.num_slots

    def max_lens(self, slots: torch.Tensor) -> torch.Tensor:
        """[num_rows] int64 slots -> [num_rows] int64: the most tokens that their sequences may have."""
        return self.ints[:, MAX_LEN].index_select(0, slots)

    def row(self, sequence: Sequence) -> SlotRow:
        """Returns the values of the sequence's slot at its admission."""
        return SlotRow(
            slot=sequence.slot,
            # The host appends to token_ids only what the device has told it.
            token_ids=sequence.token_ids,
            blocks=sequence.blocks.copy(),
            ints=self._ints(sequence),
            stop_token_ids=_stop_token_ids(sequence),
            other_blocks=[blocks.copy() for blocks in sequence.other_tables],
        )

    def fill(
        self,
        rows: dict[int, SlotRow],
        updates: Items[tuple[int, int, int]],
        tables: SlotTables,
        other_updates: Items[tuple[int, int, int, int]] = (),
    ) -> None:
        """Has the tables' next flush write the rows of new sequences, and entries of block tables.

        Args:
            rows: By slot.
            updates: (slot, index, block); those of a new sequence come after what its row says, entry by entry.
            other_updates: (table, slot, index, block): the same in tables from 1 on.
        """
        for slot, index, block in updates:
            row = rows.get(slot)
            if row is None:
                tables.write(self.block_tables, slot, self._ids(0, [block]), index)
            else:
                row.blocks[index : index + 1] = [block]
        for table, slot, index, block in other_updates:
            row = rows.get(slot)
            if row is None:
                tables.write(self.other_block_tables[table - 1], slot, self._ids(table, [block]), index)
            else:
                row.other_blocks[table - 1][index : index + 1] = [block]
        for slot, row in rows.items():
            tables.write(self.token_ids, slot, row.token_ids)
            tables.write(self.block_tables, slot, self._ids(0, row.blocks))
            for table, blocks in enumerate(row.other_blocks, 1):
                tables.write(self.other_block_tables[table - 1], slot, self._ids(table, blocks))
            tables.write(self.ints, slot, row.ints)
            tables.write(self.stop_token_ids, slot, row.stop_token_ids)

    def _ids(self, table: int, blocks: list[int]) -> list[int]:
        """What the table's caches call these blocks of the pool."""
        num_parts = self._table_parts[table]
        return blocks if num_parts == 1 else [num_parts * block for block in blocks]

    def _ints(self, sequence: Sequence) -> list[int]:
        values = [0] * self.ints.shape[1]
        values[NUM_TOKENS] = len(sequence.token_ids)
        values[NUM_COMPUTED] = sequence.num_computed_tokens
        values[MAX_LEN] = min(sequence.num_prompt_tokens + sequence.stop.max_tokens, self.max_model_len)
        return values


def _stop_token_ids(sequence: Sequence) -> list[int]:
    ids = list(sequence.stop.token_ids)
    return ids + [-1] * (MAX_STOP_TOKENS - len(ids))
