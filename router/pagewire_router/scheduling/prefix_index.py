"""What the prefix cache of a shard group holds, as far as its router knows: the shards decide, this is a guess.

Results tell which blocks entered and left the shards' index; and what a plan computes can be found by the rows behind,
in the same plan and in the plans that follow. The guess is wrong where a plan in flight evicts a block. Nothing depends
on it but the tokens that a plan sets aside for a request: see Scheduler.
"""

from collections.abc import Iterable

from pagewire_common.block_hash import PrefixHashes, max_cached_blocks

from pagewire_router.scheduling.plans import Chunk, PlanInFlight
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup

MAX_NEW_HASHES = 4096
"""Blocks that are hashed for one plan, at most; it takes some milliseconds. What lies beyond counts as not cached."""
_STRIDE = 32
"""Blocks that are hashed at a time while a prefix is looked for."""


class PrefixIndex:
    """Hashes of the blocks in a group's prefix cache, and of those that plans in flight will add."""

    def __init__(self) -> None:
        self._cached: set[int] = set()
        self._coming: dict[int, int] = {}
        """Blocks that plans in flight compute, and the step of the last plan that does."""
        self._unhashed: dict[int, list[Chunk]] = {}
        """What plans in flight compute besides, by the hash of the prompt's first block. It is hashed only when another
        prompt that begins with the same block is looked up."""
        self._num_hashes_left = MAX_NEW_HASHES

    def clear(self) -> None:
        """Forgets all blocks, as a new epoch begins with a snapshot."""
        self._cached.clear()
        self._coming.clear()
        self._unhashed.clear()

    def update(self, added: Iterable[int], removed: Iterable[int]) -> None:
        """Applies a snapshot or a result."""
        self._cached.update(added)
        self._cached.difference_update(removed)

    def on_plan(self) -> None:
        """Another plan is made."""
        self._num_hashes_left = MAX_NEW_HASHES

    def expect(self, plan: PlanInFlight, sequence: Sequence, first: int, end: int) -> None:
        """A plan computes the sequence's tokens from first to end, as far as it is known."""
        prefix = sequence.prefix
        if prefix is not None and end // prefix.block_size > first // prefix.block_size:
            chunk = Chunk(plan.step, prefix, first // prefix.block_size, end // prefix.block_size)
            if hashes := self._first(prefix, 1):
                self._unhashed.setdefault(hashes[0], []).append(chunk)
                plan.chunks.append(chunk)

    def on_result(self, plan: PlanInFlight) -> None:
        """A plan's result is back: what it was to compute is in the index, or will not be."""
        coming, step = self._coming, plan.step
        for chunk in plan.chunks:
            hashes = chunk.prefix.first(1)
            same = self._unhashed.get(hashes[0])
            if same is not None and chunk in same:
                same.remove(chunk)
                if not same:
                    del self._unhashed[hashes[0]]
            else:
                for value in hashes[chunk.first_block : chunk.end_block]:
                    if coming.get(value) == step:
                        del coming[value]

    def num_cached_tokens(self, prefix: PrefixHashes, group: SequenceGroup) -> int:
        """Number of a prompt's leading tokens that a shard would provide if it were admitted now."""
        return group.num_usable_tokens(self.num_cached_blocks(prefix), prefix.block_size)

    def checkpoints(self, prefix: PrefixHashes, num_cached_tokens: int) -> tuple[int, ...]:
        """Where the state behind so many of a prompt's tokens is to be kept for others. None here: see
        stateful_prefix_index.py."""
        return ()

    def num_cached_blocks(self, prefix: PrefixHashes) -> int:
        """Number of a prompt's leading blocks that a shard would find if it were admitted now."""
        cached, coming = self._cached, self._coming
        limit = max_cached_blocks(prefix.num_tokens, prefix.block_size)
        count, num_hashes = 0, 1
        self._hash_coming(prefix, limit)
        while count < limit:
            hashes = self._first(prefix, min(num_hashes, limit))
            end = min(len(hashes), limit)
            while count < end and (hashes[count] in cached or hashes[count] in coming):
                count += 1
            if count < min(num_hashes, limit):
                break
            num_hashes = count + _STRIDE
        return count

    def _hash_coming(self, prefix: PrefixHashes, limit: int) -> None:
        """Hashes what plans in flight compute of prompts with the same first block, for the first limit blocks."""
        if limit and self._unhashed and (hashes := self._first(prefix, 1)):
            for chunk in self._unhashed.pop(hashes[0], ()):
                self._hash(chunk)

    def _hash(self, chunk: Chunk) -> None:
        hashes = self._first(chunk.prefix, chunk.end_block)[chunk.first_block : chunk.end_block]
        self._coming.update(dict.fromkeys(hashes, chunk.step))

    def _first(self, prefix: PrefixHashes, num_blocks: int) -> list[int]:
        """The hashes of a prompt's first blocks, as far as they may be computed for this plan."""
        num_known = prefix.num_known
        if num_blocks <= num_known:
            return prefix.first(num_known)
        hashes = prefix.first(min(num_blocks, num_known + self._num_hashes_left))
        self._num_hashes_left -= len(hashes) - num_known
        return hashes
