"""What the router knows of a shard group's prefix index: enough to guess how much of a prompt is cached there."""

from collections.abc import Iterable


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
