"""The prefixes that the sequences of one plan share: with the pool, and with the rows before them in the same plan.

In a forward pass each layer writes the keys and values of all rows to the cache before any row attends. So a block that
a row fills in a step can be read by the rows behind it in that very step: they need not compute it again, and need not
wait for the next plan. What is found depends on the plan and the pool alone, and is equal on every rank.
"""

from dataclasses import dataclass
from itertools import islice

from pagewire_common.block_hash import Digest

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.sequence import Sequence

_STRIDE = 32
"""Blocks whose digests are computed at a time while a prefix is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Loan:
    """Blocks that a sequence takes over from a row before it in its first plan, once that row has all of its own."""

    lender: Sequence
    num_blocks: int
    """Blocks that the borrower starts with: those of the pool, then the lender's."""


class StepPrefixes:
    """Finds cached prefixes while the changes of a plan are worked out; changes nothing in the pool."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.lenders: dict[Digest, Sequence] = {}
        """Blocks that rows of the plan fill, and the first row that does."""

    def fill(self, sequence: Sequence, query_len: int) -> None:
        """A row computes the sequence's next query_len tokens: others can use the blocks that are full then."""
        block_size = self._pool.block_size
        num_computed = sequence.num_computed_tokens
        num_full = min(num_computed + query_len, len(sequence.token_ids)) // block_size
        for digest in islice(sequence.digests_of(num_full, block_size), num_computed // block_size, num_full):
            self.lenders.setdefault(digest, sequence)

    def find(self, sequence: Sequence) -> Loan | None:
        """Gives a new sequence the longest prefix there is. It names blocks of the pool and does not hold them yet.

        Returns the further blocks that it borrows; None: none.
        """
        block_size = self._pool.block_size
        limit = sequence.max_cached_blocks(block_size)
        blocks = sequence.blocks
        while len(blocks) < limit:
            block = self._pool.lookup(digest_of(sequence, len(blocks), limit, block_size))
            if block is None:
                break
            blocks.append(block)
        num_found, loan = len(blocks), None
        while num_found < limit:
            lender = self.lenders.get(digest_of(sequence, num_found, limit, block_size))
            if lender is None:
                break
            num_found += 1
            loan = Loan(lender, num_found)
        sequence.start_from(num_found, block_size)
        return loan


def digest_of(sequence: Sequence, block_idx: int, limit: int, block_size: int) -> Digest:
    """The digest of one of a sequence's blocks. More are computed at once, up to limit: it is likely to need them."""
    if block_idx >= len(sequence.digests):
        sequence.digests_of(min(block_idx + _STRIDE, limit), block_size)
    return sequence.digests[block_idx]
