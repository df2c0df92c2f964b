"""Cached prefixes in a model that has layers with recurrent state: a prefix is found by its state.

A prefix is as long as the furthest checkpoint that all block tables have what they keep of. It begins with the slot of
that checkpoint: there is no way to a prefix without one. What rows of the same plan compute is not shared, since a
state is there only when they have ended.
"""

from collections.abc import Sequence as Items

from pagewire_common.block_hash import table_digest

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.grouped_prefixes import GroupedPrefixes
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.engine.step_prefixes import Loan, digest_of


class StatefulPrefixes(GroupedPrefixes):
    """GroupedPrefixes that end where there is a checkpoint."""

    def __init__(self, pool: BlockPool, windows: Items[int], states: BlockPool) -> None:
        """states: The pool of state slots."""
        super().__init__(pool, windows)
        self._states = states

    def fill(self, sequence: Sequence, query_len: int) -> None:
        """See StepPrefixes: nobody else uses what a row fills."""

    def _longest(self, sequence: Sequence, num_blocks: int) -> tuple[int, Loan | None]:
        """See GroupedPrefixes. Gives the sequence the state slot of the prefix."""
        for num_found in range(num_blocks, 0, -1):
            digest = digest_of(sequence, num_found - 1, num_blocks, self._pool.block_size)
            slot = self._states.lookup(table_digest(digest, len(self._windows)))
            if slot is not None and self._last_missing(sequence, num_found) is None:
                sequence.state_slot = slot
                return num_found, None
        return 0, None
