"""The block pool: who holds which block of the KV cache, and which blocks hold what.

Used by the engine, on the step thread. Knows nothing of tensors: a block is an integer.

A block is in one of three states:
  held     reference count >= 1: some sequence's block table names it
  cached   reference count 0, in the prefix index: free, but its content can be used again until it is evicted
  empty    reference count 0, not in the index
Free blocks (cached and empty) wait in one queue. Empty ones are taken first, then the least recently used cached one.

Source: PagedAttention (arXiv:2309.06180), sections 4.2 and 4.3.
"""

from collections import OrderedDict
from collections.abc import Iterable

from pagewire_common.block_hash import Digest, wire_hash


class OutOfBlocks(Exception):
    """No block is free."""


class BlockPool:
    """Free list, reference counts, prefix index and least-recently-used eviction over num_blocks blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._digests: list[Digest | None] = [None] * num_blocks
        self._index: dict[Digest, int] = {}
        # From the next to be taken to the last: empty blocks at the front, cached ones in order of their release.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._added: dict[Digest, None] = {}
        self._removed: dict[Digest, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks in the prefix index, held ones included."""
        return len(self._index)

    def allocate(self) -> int:
        """Takes a free block, evicting its cached content if it has any. Raises OutOfBlocks."""
        if not self._free:
            raise OutOfBlocks
        block, _ = self._free.popitem(last=False)
        if self._digests[block] is not None:
            self._evict(block)
        self._ref_counts[block] = 1
        return block

    def share(self, blocks: list[int]) -> None:
        """Adds a holder to each of some held or cached blocks."""
        counts, free = self._ref_counts, self._free
        for block in blocks:
            if counts[block] == 0:
                del free[block]
            counts[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Takes one holder from each block of a sequence. The sequence's tail is evicted before its head."""
        for block in reversed(blocks):
            count = self._ref_counts[block] - 1
            assert count >= 0, f"block {block} is released more often than held"
            self._ref_counts[block] = count
            if count == 0:
                self._free[block] = None
                if self._digests[block] is None:
                    self._free.move_to_end(block, last=False)

    def is_writable(self, block: int) -> bool:
        """A block may be written in place only if it has one holder and nobody can find it in the index."""
        return self._ref_counts[block] == 1 and self._digests[block] is None

    def are_read_only(self, blocks: Iterable[int | None]) -> list[bool]:
        """For each block whether it is not writable; None is no block, and is not read-only."""
        ref_counts, digests = self._ref_counts, self._digests
        return [block is not None and (ref_counts[block] != 1 or digests[block] is not None) for block in blocks]

    def is_shared(self, block: int) -> bool:
        """Whether the block has more than one holder."""
        return self._ref_counts[block] > 1

    def num_holders(self, block: int) -> int:
        """How many block tables name the block."""
        return self._ref_counts[block]

    def is_indexed(self, block: int) -> bool:
        """Whether the block can be found in the prefix index."""
        return self._digests[block] is not None

    def lookup(self, digest: Digest) -> int | None:
        """The block with this content, if there is one."""
        return self._index.get(digest)

    def index(self, block: int, digest: Digest) -> None:
        """Enters a full block in the prefix index. Does nothing if a block with the same content is in it already."""
        if digest in self._index or self._digests[block] is not None:
            return
        self._index[digest] = block
        self._digests[block] = digest
        _note(digest, self._added, self._removed)

    def forget(self, blocks: list[int]) -> None:
        """Takes blocks out of the prefix index: their content is not to be used by anybody else."""
        for block in blocks:
            if self._digests[block] is not None:
                self._evict(block)
                if self._ref_counts[block] == 0:
                    self._free.move_to_end(block, last=False)

    def forget_all(self) -> None:
        """Empties the prefix index: the blocks' content cannot be trusted any more."""
        for digest, block in self._index.items():
            self._digests[block] = None
            _note(digest, self._removed, self._added)
        self._index.clear()

    def take_index_changes(self) -> tuple[list[int], list[int]]:
        """The wire hashes of the blocks that entered the index since the last call, and of those that left it."""
        added, removed = [wire_hash(d) for d in self._added], [wire_hash(d) for d in self._removed]
        self._added.clear()
        self._removed.clear()
        return added, removed

    def cached_hashes(self) -> list[int]:
        """The wire hashes of all blocks in the index."""
        return [wire_hash(digest) for digest in self._index]

    def _evict(self, block: int) -> None:
        digest = self._digests[block]
        assert digest is not None
        del self._index[digest]
        self._digests[block] = None
        _note(digest, self._removed, self._added)

    def check_whole(self) -> None:
        """Asserts that nobody holds a block and that the bookkeeping agrees with itself."""
        assert not any(self._ref_counts), [b for b, count in enumerate(self._ref_counts) if count]
        self.check_consistent({})

    def check_consistent(self, holders: dict[int, int]) -> None:
        """Asserts the pool's invariants; holders counts how many block tables name each block."""
        for block, count in enumerate(self._ref_counts):
            assert count == holders.get(block, 0), f"block {block}: {count} references, {holders.get(block, 0)} holders"
            assert (block in self._free) == (count == 0), f"block {block}: free and held at once, or neither"
        for digest, block in self._index.items():
            assert self._digests[block] == digest, f"block {block}: index and block disagree"
        assert sum(d is not None for d in self._digests) == len(self._index)


def _note(digest: Digest, changes: dict[Digest, None], opposite: dict[Digest, None]) -> None:
    """Notes a change of the index; it cancels an opposite one that has not been reported."""
    if digest in opposite:
        del opposite[digest]
    else:
        changes[digest] = None
