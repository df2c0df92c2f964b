"""The blocks of sequences in a model with several block tables, or with a window.

Each table is as long as the sequence has blocks of tokens. A table with a window holds the last ones of them: when a
plan has been applied, every sequence that it ran or forked gives back what lies before its window, by the arithmetic
that its router counts with (pagewire_common/cache_groups.py). The next plan may hand these blocks out, since a device
runs steps in order. Until then they stay findable like all cached blocks.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items

from pagewire.v1 import shard_pb2
from pagewire_common.block_hash import table_digest
from pagewire_common.cache_groups import first_kept_block

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.grouped_prefixes import GroupedPrefixes
from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.engine.sequence import Sequence, forked
from pagewire_shard.engine.sequence_blocks import SequenceBlocks
from pagewire_shard.engine.step_changes import Row, StepChanges, num_blocks_held_anew, num_blocks_of_row
from pagewire_shard.engine.step_prefixes import Loan


class GroupedBlocks(SequenceBlocks):
    """SequenceBlocks for several block tables. All blocks of a sequence are those of all its tables."""

    def __init__(self, pool: BlockPool, windows: Items[int]) -> None:
        """windows: By table; 0: it keeps all tokens."""
        super().__init__(pool)
        self._windows = windows
        self._num_shared = 0
        self._parents: list[Sequence] = []
        """Those that the plan at hand forks."""

    @property
    def num_shared_window_blocks(self) -> int:
        """See SequenceBlocks."""
        return self._num_shared

    def prefixes(self) -> GroupedPrefixes:
        """See SequenceBlocks."""
        return GroupedPrefixes(self._pool, self._windows)

    def fork(self, parent: Sequence, fork: shard_pb2.Fork) -> Sequence | None:
        """See SequenceBlocks."""
        child = forked(parent, fork, self._block_size)
        child.other_tables = [table[: len(child.blocks)] for table in parent.other_tables]
        child.first_blocks = self._first_blocks(fork.num_tokens)
        if any(mine < theirs for mine, theirs in zip(child.first_blocks, parent.first_blocks, strict=True)):
            return None
        self._parents.append(parent)
        return child

    def _first_blocks(self, num_tokens: int) -> list[int]:
        """For each table the first block that it keeps of so many computed and certain tokens."""
        block_size = self._block_size
        return [window and first_kept_block(num_tokens, window, block_size) for window in self._windows]

    def fits(self, changes: StepChanges) -> bool:
        """See SequenceBlocks."""
        pool, block_size, num_tables = self._pool, self._block_size, len(self._windows)
        num_at_most = num_tables * (changes.num_tokens // block_size + 2 * len(changes.rows))
        num_at_most += num_tables * sum([len(sequence.blocks) for sequence in changes.admitted])
        return num_at_most <= pool.num_free or self._num_blocks(changes) <= pool.num_free

    def _num_blocks(self, changes: StepChanges) -> int:
        """Free blocks that a plan needs until what slid out of windows is given back."""
        added: defaultdict[int, int] = defaultdict(int)
        for sequence in (*changes.children, *changes.admitted):
            for block in self.held(sequence):
                added[block] += 1
        for sequence in changes.released:
            for block in self.held(sequence):
                added[block] -= 1
        num_taken = num_blocks_held_anew(added, self._pool)
        for sequence, query_len, _ in changes.rows:
            if query_len:
                loan, writes = changes.loans.get(sequence), sequence.next_writes(query_len)
                for table in _tables(sequence):
                    num_held = len(table) if loan is None else loan.num_blocks
                    num_taken += num_blocks_of_row(table, writes, num_held, self._pool, added)
        return num_taken

    def hold(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        for table, first, window in zip(_tables(sequence), sequence.first_blocks, self._windows, strict=True):
            self._share(table[first:], window)

    def end_epoch(self) -> None:
        """See SequenceBlocks."""
        super().end_epoch()
        self._parents.clear()

    def release(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        for table, first, window in zip(_tables(sequence), sequence.first_blocks, self._windows, strict=True):
            self._drop(table[first:], window)

    def _share(self, blocks: list[int], window: int) -> None:
        if window:
            self._num_shared += sum([self._pool.num_holders(block) > 0 for block in blocks])
        self._pool.share(blocks)

    def _drop(self, blocks: list[int], window: int) -> None:
        if window:
            self._num_shared -= sum([self._pool.num_holders(block) > 1 for block in blocks])
        self._pool.release(blocks)

    def _borrow(self, sequence: Sequence, loan: Loan) -> None:
        for mine, theirs, window in zip(_tables(sequence), _tables(loan.lender), self._windows, strict=True):
            blocks = theirs[len(mine) : loan.num_blocks]
            self._share(blocks, window)
            mine += blocks

    def _take(self, sequence: Sequence, first: int, end: int, batch: RunBatch) -> None:
        pool, i = self._pool, first // self._block_size
        num_blocks = -(-end // self._block_size)
        for index, (table, window) in enumerate(zip(_tables(sequence), self._windows, strict=True)):
            if i < len(table) and not pool.is_writable(table[i]):
                copy = pool.allocate()
                batch.copies.append((table[i], copy))
                _update(batch, index, sequence.slot, i, copy)
                if pool.is_shared(table[i]):
                    self._drop([table[i]], window)
                else:
                    self._copied.append(table[i])
                table[i] = copy
            for place in range(len(table), num_blocks):
                block = pool.allocate()
                _update(batch, index, sequence.slot, place, block)
                table.append(block)

    def after_run(self, changes: StepChanges) -> None:
        """See SequenceBlocks."""
        for parent in self._parents:
            parent.fork_from = 0
            self._slide(parent)
        self._parents.clear()
        for sequence, query_len, _ in changes.rows:
            if query_len:
                self._slide(sequence)

    def settle(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        num_needed = -(-sequence.num_computed_tokens // self._block_size)
        for table, window in zip(_tables(sequence), self._windows, strict=True):
            self._drop(table[num_needed:], window)
            del table[num_needed:]
        self._slide(sequence)

    def _slide(self, sequence: Sequence) -> None:
        """Gives back what lies before the windows. A sequence that is gone holds nothing."""
        if sequence.released:
            return
        num_certain = sequence.num_computed_tokens - sequence.num_unverified_tokens
        if sequence.fork_from:
            num_certain = min(num_certain, sequence.fork_from)
        firsts = self._first_blocks(num_certain)
        for i, (table, first, window) in enumerate(zip(_tables(sequence), firsts, self._windows, strict=True)):
            if first > sequence.first_blocks[i]:
                self._drop(table[sequence.first_blocks[i] : first], window)
                sequence.first_blocks[i] = first

    def index_full(self, sequence: Sequence) -> None:
        """See SequenceBlocks. What slid out before its tokens were known is not entered."""
        num_full = sequence.num_verified_tokens // self._block_size
        first = sequence.num_indexed_blocks
        if first < num_full:
            digests = sequence.digests_of(num_full, self._block_size)
            for index, table in enumerate(_tables(sequence)):
                for i in range(max(first, sequence.first_blocks[index]), num_full):
                    self._pool.index(table[i], table_digest(digests[i], index))
            sequence.num_indexed_blocks = num_full

    def forget(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        self._pool.forget(list(self.held(sequence)))

    def describe(self, rows: list[Row], state: list[int]) -> list[bool]:
        """See SequenceBlocks."""
        state.append(self._num_shared)
        shared = [False] * len(rows)
        for row, (sequence, _, _) in enumerate(rows):
            end = sequence.num_computed_tokens
            i_next = (end - sequence.num_unverified_tokens) // self._block_size
            tables = _tables(sequence)
            if i_next < len(sequence.blocks):
                shared[row] = any(self._pool.are_read_only(table[i_next] for table in tables))
            state += (sequence.seq_id, end, *sequence.first_blocks, *(table[-1] if table else 0 for table in tables))
        return shared

    def held(self, sequence: Sequence) -> Iterator[int]:
        """See SequenceBlocks."""
        for table, first in zip(_tables(sequence), sequence.first_blocks, strict=True):
            yield from table[first:]

    def check_consistent(self, sequences: Mapping[int, Sequence]) -> None:
        """See SequenceBlocks."""
        holders: defaultdict[int, int] = defaultdict(int)
        for sequence in sequences.values():
            tables = _tables(sequence)
            assert len({len(table) for table in tables}) == 1, f"seq_id {sequence.seq_id}: tables of several lengths"
            for table, first, window in zip(tables, sequence.first_blocks, self._windows, strict=True):
                for block in table[first:] if window else ():
                    holders[block] += 1
        assert self._num_shared == sum(holders.values()) - len(holders)


def _tables(sequence: Sequence) -> tuple[list[int], ...]:
    return (sequence.blocks, *sequence.other_tables)


def _update(batch: RunBatch, table: int, slot: int, index: int, block: int) -> None:
    if table:
        batch.other_table_updates.append((table, slot, index, block))
    else:
        batch.table_updates.append((slot, index, block))
