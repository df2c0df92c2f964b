"""Cached prefixes in a model with several block tables, or with a window: a prefix counts as far as every table has it.

A table that keeps all tokens needs all blocks of the prefix, one with a window those that it keeps of so many tokens. A
row before the new sequence's in the plan that fills the prefix's last block holds all of them while it runs, so that
it lends whatever is not in the pool.
"""

from collections.abc import Sequence as Items

from pagewire_common.block_hash import table_digest
from pagewire_common.cache_groups import first_kept_block

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.engine.step_prefixes import Loan, StepPrefixes, digest_of


class GroupedPrefixes(StepPrefixes):
    """StepPrefixes for several block tables."""

    def __init__(self, pool: BlockPool, windows: Items[int]) -> None:
        """windows: By table; 0: it keeps all tokens."""
        super().__init__(pool)
        self._windows = windows

    def find(self, sequence: Sequence) -> Loan | None:
        """See StepPrefixes."""
        block_size, windows = self._pool.block_size, self._windows
        limit = sequence.max_cached_blocks(block_size)
        full = self._leading_blocks(sequence, limit)
        num_found = min((len(blocks) for blocks in full.values()), default=limit)
        while num_found < limit and digest_of(sequence, num_found, limit, block_size) in self.lenders:
            num_found += 1
        num_found, loan = self._longest(sequence, num_found)
        sequence.first_blocks = [self._first_kept(num_found, window) for window in windows]
        tables = [
            full[table][:num_found] if not window else self._last_blocks(sequence, table, num_found, loan)
            for table, window in enumerate(windows)
        ]
        if loan is not None:
            # From where one table lacks a block, all tables that keep all tokens borrow.
            num_own = min((len(blocks) for blocks in full.values()), default=num_found)
            for table in full:
                del tables[table][num_own:]
        sequence.blocks, *sequence.other_tables = tables
        sequence.start_from(num_found, block_size)
        return loan

    def _first_kept(self, num_blocks: int, window: int) -> int:
        return first_kept_block(num_blocks * self._pool.block_size, window, self._pool.block_size) if window else 0

    def _lookup(self, sequence: Sequence, block_idx: int, limit: int, table: int) -> int | None:
        return self._pool.lookup(table_digest(digest_of(sequence, block_idx, limit, self._pool.block_size), table))

    def _leading_blocks(self, sequence: Sequence, limit: int) -> dict[int, list[int]]:
        """By table that keeps all tokens: its cached blocks, from the first one on."""
        found: dict[int, list[int]] = {}
        for table, window in enumerate(self._windows):
            if not window:
                blocks = found[table] = []
                while len(blocks) < limit and (block := self._lookup(sequence, len(blocks), limit, table)) is not None:
                    blocks.append(block)
                limit = len(blocks)
        return found

    def _longest(self, sequence: Sequence, num_blocks: int) -> tuple[int, Loan | None]:
        """The longest prefix of at most num_blocks blocks that the tables with a window have too."""
        while num_blocks:
            lender = self.lenders.get(digest_of(sequence, num_blocks - 1, num_blocks, self._pool.block_size))
            if lender is not None:
                return num_blocks, Loan(lender, num_blocks)
            missing = self._last_missing(sequence, num_blocks)
            if missing is None:
                break
            num_blocks = missing
        return num_blocks, None

    def _last_missing(self, sequence: Sequence, num_blocks: int) -> int | None:
        """The last block of so many that a table with a window keeps and does not have. No longer prefix than up to it
        can be served."""
        for table, window in enumerate(self._windows):
            if window:
                for i in range(num_blocks - 1, self._first_kept(num_blocks, window) - 1, -1):
                    if self._lookup(sequence, i, num_blocks, table) is None:
                        return i
        return None

    def _last_blocks(self, sequence: Sequence, table: int, num_blocks: int, loan: Loan | None) -> list[int]:
        """The blocks of a table with a window; of those that it does not keep something. All others are borrowed if any
        is."""
        first = sequence.first_blocks[table]
        if loan is not None:
            return [0] * first
        kept = (self._lookup(sequence, i, num_blocks, table) for i in range(first, num_blocks))
        return [0] * first + [block for block in kept if block is not None]
