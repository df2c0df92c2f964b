"""What the router knows of a shard group's prefix index: enough to guess how much of a prompt is cached there.

The hash chain is the shard's: SHA-256 of the parent's digest and the block's token ids; on the wire its first 8 bytes.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator

_VERSION = b"pagewire.v1/block\0"


def prefix_hashes(token_ids: list[int], block_size: int, cache_salt: str = "", adapter: str = "") -> Iterator[int]:
    """The wire hashes of a prompt's full blocks, first to last. One of its tokens is always computed, never cached."""
    digest = hashlib.sha256(_VERSION + adapter.encode() + b"\0" + cache_salt.encode()).digest()
    for start in range(0, (len(token_ids) - 1) // block_size * block_size, block_size):
        digest = hashlib.sha256(digest + array("I", token_ids[start : start + block_size]).tobytes()).digest()
        yield int.from_bytes(digest[:8], "little")


class PrefixMirror:
    """The hashes of a group's cached blocks: a snapshot, kept up by every result."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def clear(self) -> None:
        """A new epoch: the snapshot follows."""
        self._hashes.clear()

    def update(self, added: Iterable[int], removed: Iterable[int]) -> None:
        """Takes in what a snapshot or a result says. A block that entered and left at once has left."""
        self._hashes.update(added)
        self._hashes.difference_update(removed)

    def num_cached_blocks(self, hashes: Iterable[int]) -> int:
        """How many of a prompt's leading blocks are cached."""
        count = 0
        for value in hashes:
            if value not in self._hashes:
                break
            count += 1
        return count
