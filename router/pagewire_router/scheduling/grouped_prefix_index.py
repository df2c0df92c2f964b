"""The prefix index of a shard group whose model has several block tables, or a window.

A prefix counts as far as every table has the blocks that it keeps of it, as the shards look for it.
"""

from pagewire_common.block_hash import PrefixHashes, max_cached_blocks, table_hash
from pagewire_common.cache_groups import first_kept_block

from pagewire_router.scheduling.prefix_index import PrefixIndex

_STRIDE = 32
"""Blocks that are hashed at a time while a prefix is looked for."""


class GroupedPrefixIndex(PrefixIndex):
    """PrefixIndex for several block tables. Plans in flight fill the blocks of all tables."""

    def __init__(self, windows: tuple[int, ...]) -> None:
        """windows: By table; 0: it keeps all tokens."""
        super().__init__()
        self._windows = windows

    def num_cached_blocks(self, prefix: PrefixHashes) -> int:
        """See PrefixIndex."""
        limit = max_cached_blocks(prefix.num_tokens, prefix.block_size)
        self._hash_coming(prefix, limit)
        count = self._num_leading(prefix, limit)
        hashes = self._first(prefix, count)
        while count and hashes[count - 1] not in self._coming:
            missing = self._last_missing(hashes, count, prefix.block_size)
            if missing is None:
                break
            count = missing
        return count

    def _num_leading(self, prefix: PrefixHashes, limit: int) -> int:
        """Blocks that the tables which keep all tokens have, from the first one on."""
        full = [table for table, window in enumerate(self._windows) if not window]
        count = 0
        while count < limit:
            num_wanted = min(limit, count + (_STRIDE if count else 1))
            hashes = self._first(prefix, num_wanted)
            end = min(len(hashes), limit)
            while count < end and all(self._has(hashes[count], table) for table in full):
                count += 1
            if count < num_wanted:
                break
        return count

    def _has(self, value: int, table: int) -> bool:
        return table_hash(value, table) in self._cached or value in self._coming

    def _last_missing(self, hashes: list[int], count: int, block_size: int) -> int | None:
        """The last of so many blocks that a table with a window keeps of them and does not have."""
        for table, window in enumerate(self._windows):
            if window:
                first = first_kept_block(count * block_size, window, block_size)
                missing = (i for i in range(count - 1, first - 1, -1) if not self._has(hashes[i], table))
                if (i := next(missing, None)) is not None:
                    return i
        return None
