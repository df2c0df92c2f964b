"""The prefix index of a shard group whose model has layers with recurrent state.

A prefix counts as far as there is a checkpoint, as the shards look for it. Checkpoints are few, since each is as large
as the state of a sequence, and a chunk of a prompt ends at each. They lie behind the last full block of a prompt, where
the next turn of a conversation goes on, and where a prompt leaves what is known of others, such as a common system
prompt. The second prompt with a common beginning computes it again, and leaves the checkpoint that all further ones
start from.
"""

from pagewire_common.block_hash import PrefixHashes, max_cached_blocks, table_hash
from pagewire_common.cache_groups import PLAIN, num_states_of, table_windows

from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.grouped_prefix_index import GroupedPrefixIndex
from pagewire_router.scheduling.prefix_index import PrefixIndex
from pagewire_router.scheduling.sequence import SequenceGroup


class StatefulPrefixIndex(GroupedPrefixIndex):
    """GroupedPrefixIndex in which a prefix ends at a checkpoint."""

    def num_cached_tokens(self, prefix: PrefixHashes, group: SequenceGroup) -> int:
        """See PrefixIndex."""
        num_blocks, block_size = max_cached_blocks(prefix.num_tokens, prefix.block_size), prefix.block_size
        return self._num_cached(prefix, group.num_usable_tokens(num_blocks, block_size) // block_size) * block_size

    def num_cached_blocks(self, prefix: PrefixHashes) -> int:
        """See PrefixIndex."""
        return self._num_cached(prefix, max_cached_blocks(prefix.num_tokens, prefix.block_size))

    def _num_cached(self, prefix: PrefixHashes, most: int) -> int:
        """The furthest checkpoint that counts, of the first blocks up to `most`."""
        count = min(self._num_known(prefix), most)
        hashes = self._first(prefix, count)
        while count and not self._has_checkpoint(hashes, count, prefix.block_size):
            count -= 1
        return count

    def checkpoints(self, prefix: PrefixHashes, num_cached_tokens: int) -> tuple[int, ...]:
        """See PrefixIndex."""
        last = max_cached_blocks(prefix.num_tokens, prefix.block_size)
        places = sorted({self._num_known(prefix), last})
        return tuple(place for count in places if (place := count * prefix.block_size) > num_cached_tokens)

    def _num_known(self, prefix: PrefixHashes) -> int:
        """Leading blocks of a prompt that are cached or being computed, with a state or without."""
        limit = max_cached_blocks(prefix.num_tokens, prefix.block_size)
        self._hash_coming(prefix, limit)
        return self._num_leading(prefix, limit)

    def _has_checkpoint(self, hashes: list[int], count: int, block_size: int) -> bool:
        """Whether so many blocks have a checkpoint, and all that tables with a window keep of them."""
        checkpoint = table_hash(hashes[count - 1], len(self._windows))
        return checkpoint in self._cached and self._last_missing(hashes, count, block_size) is None


def prefix_index(limits: GroupLimits) -> PrefixIndex:
    """The index for a shard group of these limits."""
    if num_states_of(limits.groups):
        return StatefulPrefixIndex(table_windows(limits.groups))
    return PrefixIndex() if limits.groups == PLAIN else GroupedPrefixIndex(table_windows(limits.groups))
