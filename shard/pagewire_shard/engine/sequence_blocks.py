"""The blocks of sequences: who holds what while plans are applied.

Here for models with one block table, which keeps all tokens; grouped_blocks.py is for those with several, or a window.
"""

from collections.abc import Callable, Iterator, Mapping

from pagewire.v1 import shard_pb2

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.engine.sequence import Sequence, forked
from pagewire_shard.engine.step_changes import Row, StepChanges
from pagewire_shard.engine.step_prefixes import Loan, StepPrefixes


class SequenceBlocks:
    """Takes blocks from the pool and gives them back."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._block_size = pool.block_size
        self._copied: list[int] = []
        """Sources of copies that nobody else holds: released after the run, so that none is handed out within it."""

    @property
    def num_shared_window_blocks(self) -> int:
        """As StepResult has it."""
        return 0

    def prefixes(self) -> StepPrefixes:
        """Finds the prefixes of one plan."""
        return StepPrefixes(self._pool)

    def chunk_len(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of a sequence a run with this budget computes at most."""
        return budget

    def fork(self, parent: Sequence, fork: shard_pb2.Fork) -> Sequence | None:
        """The child, which names its parent's blocks and does not hold them yet; None: the parent has them no more."""
        return forked(parent, fork, self._block_size)

    def fits(self, changes: StepChanges) -> bool:
        """Whether the pool has the blocks for a plan."""
        return changes.fits(self._pool)

    def hold(self, sequence: Sequence) -> None:
        """The sequence holds the blocks that it names."""
        self._pool.share(sequence.blocks)

    def release(self, sequence: Sequence) -> None:
        """The sequence is forgotten."""
        self._pool.release(sequence.blocks)

    def end_epoch(self) -> None:
        """Nothing of a plan that broke is left behind. Sequences are released one by one."""
        self._pool.release(self._copied)
        self._copied.clear()

    def run(
        self, rows: list[Row], loans: Mapping[Sequence, Loan], batch: RunBatch, admit: Callable[[Sequence], None]
    ) -> None:
        """Moves the rows' sequences ahead and gives them blocks for their new tokens.

        Args:
            admit: Called with sequences that had to borrow blocks first.
        """
        block_size, is_writable = self._block_size, self._pool.is_writable
        for sequence, query_len, sample_len in rows:
            if loans and sequence in loans:
                self._borrow(sequence, loans[sequence])
                admit(sequence)
            if query_len:
                first, end = sequence.advance(query_len, sample_len)
                blocks, i = sequence.blocks, first // block_size
                if (
                    end > len(blocks) * block_size
                    or not is_writable(blocks[i])
                    or (sequence.other_tables and not all(is_writable(table[i]) for table in sequence.other_tables))
                ):
                    self._take(sequence, first, end, batch)
                if end > batch.max_seq_len:
                    batch.max_seq_len = end
        self._pool.release(self._copied)
        self._copied.clear()

    def _borrow(self, sequence: Sequence, loan: Loan) -> None:
        """Gives an admitted sequence the blocks that a row before it computes."""
        blocks = loan.lender.blocks[len(sequence.blocks) : loan.num_blocks]
        self._pool.share(blocks)
        sequence.blocks += blocks

    def _take(self, sequence: Sequence, first: int, end: int, batch: RunBatch) -> None:
        """Gives a sequence blocks of its own for positions first to end.

        Only the block of the first one can be shared or in the index: those behind it hold unverified tokens at most.
        """
        block_size = self._block_size
        blocks = sequence.blocks
        i = first // block_size
        if i < len(blocks) and not self._pool.is_writable(blocks[i]):
            copy = self._pool.allocate()
            batch.copies.append((blocks[i], copy))
            batch.table_updates.append((sequence.slot, i, copy))
            if self._pool.is_shared(blocks[i]):
                self._pool.release([blocks[i]])
            else:
                self._copied.append(blocks[i])
            blocks[i] = copy
        while len(blocks) * block_size < end:
            block = self._pool.allocate()
            batch.table_updates.append((sequence.slot, len(blocks), block))
            blocks.append(block)

    def after_run(self, changes: StepChanges) -> None:
        """The plan's rows have their blocks, and those that are full are in the index."""

    def settle(self, sequence: Sequence) -> None:
        """Releases the blocks that only rejected drafts needed. No step in flight writes to them."""
        num_needed = -(-sequence.num_computed_tokens // self._block_size)
        self._pool.release(sequence.blocks[num_needed:])
        del sequence.blocks[num_needed:]

    def index_full(self, sequence: Sequence) -> None:
        """Enters its blocks that are full, known and computed in the prefix index."""
        num_full = sequence.num_verified_tokens // self._block_size
        first = sequence.num_indexed_blocks
        if first < num_full:
            digests = sequence.digests_of(num_full, self._block_size)
            for i in range(first, num_full):
                self._pool.index(sequence.blocks[i], digests[i])
            sequence.num_indexed_blocks = num_full

    def forget(self, sequence: Sequence) -> None:
        """Takes its blocks out of the prefix index."""
        self._pool.forget(sequence.blocks)

    def describe(self, rows: list[Row], state: list[int]) -> list[bool]:
        """Adds what the rows hold to the state that ranks compare.

        Returns for each row whether its next token goes to a block that is shared or indexed.
        """
        block_size = self._block_size
        next_blocks: list[int | None] = []
        for sequence, _, _ in rows:
            blocks, end = sequence.blocks, sequence.num_computed_tokens
            i_next = (end - sequence.num_unverified_tokens) // block_size
            next_blocks.append(blocks[i_next] if i_next < len(blocks) else None)
            state += (sequence.seq_id, end, blocks[-1] if blocks else 0)
        return self._pool.are_read_only(next_blocks)

    def held(self, sequence: Sequence) -> Iterator[int]:
        """The blocks that it holds."""
        yield from sequence.blocks

    def check_consistent(self, sequences: Mapping[int, Sequence]) -> None:
        """Asserts that what the sequences hold and what the pool says agree."""
