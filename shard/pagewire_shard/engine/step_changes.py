"""What a plan will change, worked out before anything is changed, and whether the pool has the blocks for it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.engine.step_prefixes import Loan

Row = tuple[Sequence, int, int]
"""A sequence, how many tokens it computes and how many it samples at most. 0 and 0: it has stopped, or has been scored,
and does not run."""


@dataclass(slots=True, eq=False)
class StepChanges:
    """The sequences that a plan brings, takes away and runs."""

    children: list[Sequence]
    """The forked sequences; they name their parents' blocks and do not hold them yet."""
    admitted: list[Sequence]
    """The admitted sequences; they name the blocks of their cached prefixes and do not hold them yet."""
    released: list[Sequence]
    """The sequences to forget; children of this plan may be among them."""
    rows: list[Row]
    """The run in its order."""
    loans: Mapping[Sequence, Loan]
    """What admitted sequences borrow of rows before them. The lenders hold it, so that it takes no further blocks."""
    scored: list[int] = field(default_factory=list)
    """Rows in mode SCORE that catch up with their known tokens: they sample nothing."""

    num_tokens: int = field(init=False)
    """Tokens the plan computes, draft tokens included."""

    def __post_init__(self) -> None:
        self.num_tokens = sum([query_len for _, query_len, _ in self.rows])

    def score(self, row: int) -> None:
        """The row runs in mode SCORE."""
        sequence, query_len, sample_len = self.rows[row]
        if sample_len:
            self.rows[row] = (sequence, query_len, 0)
            self.scored.append(row)

    @property
    def num_new_slots(self) -> int:
        """Slots that the plan takes. A child that the same plan releases takes none."""
        if not self.children:
            return len(self.admitted)
        released = set(self.released)
        return len(self.admitted) + sum(child not in released for child in self.children)

    def fits(self, pool: BlockPool) -> bool:
        """Whether the pool has the blocks for it."""
        num_at_most = self.num_tokens // pool.block_size + 2 * len(self.rows)
        num_at_most += sum([len(sequence.blocks) for sequence in self.admitted])
        return num_at_most <= pool.num_free or self._num_blocks(pool) <= pool.num_free

    def _num_blocks(self, pool: BlockPool) -> int:
        """Free blocks that the plan needs: what it takes, less what its releases give back."""
        added: defaultdict[int, int] = defaultdict(int)  # Holders that each block gains.
        for sequence in (*self.children, *self.admitted):
            for block in sequence.blocks:
                added[block] += 1
        for sequence in self.released:
            for block in sequence.blocks:
                added[block] -= 1
        num_taken = num_blocks_held_anew(added, pool)
        for sequence, query_len, _ in self.rows:
            if query_len:
                loan = self.loans.get(sequence)
                num_held = len(sequence.blocks) if loan is None else loan.num_blocks
                num_taken += num_blocks_of_row(sequence.blocks, sequence.next_writes(query_len), num_held, pool, added)
        return num_taken


def num_blocks_held_anew(added: Mapping[int, int], pool: BlockPool) -> int:
    """Free blocks that are held if each block gains so many holders, less those that nobody holds any more."""
    num_taken = 0
    for block, count in added.items():
        before = pool.num_holders(block)
        num_taken += (before == 0) - (before + count == 0)
    return num_taken


def num_blocks_of_row(
    blocks: list[int], writes: tuple[int, int], num_held: int, pool: BlockPool, added: defaultdict[int, int]
) -> int:
    """Free blocks that a row takes for one of its block tables.

    Args:
        writes: Where its tokens may go: the first position, and the end.
        num_held: Length of the table when the row runs.
        added: Holders that each block has gained by then.
    """
    first, end = writes
    num_taken = max(0, -(-end // pool.block_size) - num_held)
    i = first // pool.block_size
    if i < len(blocks):
        block = blocks[i]
        num_holders = pool.num_holders(block) + added[block]
        if num_holders > 1 or pool.is_indexed(block):
            num_taken += 1
            if num_holders > 1:
                added[block] -= 1  # Its copy takes the row's place.
    return num_taken
