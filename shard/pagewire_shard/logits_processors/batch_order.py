"""How the rows of one batch become those of the next, as processors are told."""

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items
from typing import Generic, TypeVar

from pagewire_shard.logits_processors.interface import AddedRequest, BatchUpdate, MoveDirectionality, MovedRequest

Row = TypeVar("Row", bound=Hashable)


class BatchOrder(Generic[Row]):
    """Knows the rows of the last batch."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def advance(self, rows: Items[Row], describe: Callable[[Row, int], AddedRequest]) -> BatchUpdate | None:
        """Goes on to a batch of these rows. Returns what has changed; None: nothing.

        Args:
            describe: Tells of a row that is new, at its index.
        """
        if rows == self._rows:
            return None
        staying = set(rows)
        places: list[Row | None] = [row if row in staying else None for row in self._rows]
        free = [index for index, row in enumerate(places) if row is None]
        known = set(self._rows)
        added = []
        for row in rows:
            if row not in known:
                index = free.pop(0) if free else len(places)
                places[index : index + 1] = [row]
                added.append(describe(row, index))
        # An index that was taken again is not among them: what is added replaces what was there.
        removed = free.copy()
        moved = _closed_up(places, len(rows)) + _sorted_as(rows, places)
        self._rows = list(rows)
        return BatchUpdate(len(rows), removed, added, moved)


def _closed_up(places: list[Row | None], num_rows: int) -> list[MovedRequest]:
    """Moves the last rows to indices that are still free, so that the first num_rows are taken."""
    moved: list[MovedRequest] = []
    free = [index for index, row in enumerate(places[:num_rows]) if row is None]
    for source in range(len(places) - 1, num_rows - 1, -1):
        if (row := places[source]) is not None:
            target = free.pop(0)
            places[target] = row
            moved.append((source, target, MoveDirectionality.UNIDIRECTIONAL))
    del places[num_rows:]
    return moved


def _sorted_as(rows: Items[Row], places: list[Row | None]) -> list[MovedRequest]:
    """Swaps rows until all are where the batch has them."""
    moved: list[MovedRequest] = []
    index_of = {row: index for index, row in enumerate(places)}
    for target, row in enumerate(rows):
        source, other = index_of[row], places[target]
        if source != target:
            places[source], places[target] = other, row
            index_of[other], index_of[row] = source, target
            moved.append((source, target, MoveDirectionality.SWAP))
    return moved
