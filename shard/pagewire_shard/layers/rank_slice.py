"""Which rows and columns of a parameter one rank holds.

They follow from the shapes of all of the parameter and of the rank's part.

A spec says what a rank's part of it is (`for_rank`), such as fewer heads or a narrower feed-forward block. Whatever of
a parameter is smaller in that part is cut into equal pieces, which the ranks have in their order: rows of each part and
segment of it, and columns. Where there are fewer pieces than ranks, several ranks have the same one.
"""

from dataclasses import dataclass
from itertools import accumulate

from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.parallel.ranks import Ranks

Run = tuple[int, int]
"""First index and length."""


@dataclass(frozen=True, slots=True)
class RankSlice:
    """What one rank holds of a parameter."""

    rows: tuple[tuple[Run, ...], ...]
    """For each part of the whole parameter the runs of its rows, which the rank has in this order; empty: none."""
    starts: tuple[int, ...]
    """The first row of each part in all of the parameter."""
    columns: Run | None
    """None: all of them."""
    ranks: Ranks

    @property
    def is_partial(self) -> bool:
        """Whether products with the rank's part have to be summed over all ranks."""
        return self.columns is not None

    @property
    def has_bias(self) -> bool:
        """Whether the rank adds the bias: of a sum over all ranks only one does."""
        return not self.is_partial or self.ranks.rank == 0

    def runs(self, part: int | None) -> list[Run]:
        """The rank's rows of a tensor that holds one part of the whole parameter; None: all of them."""
        if part is not None:
            return list(self.rows[part])
        runs: list[Run] = []
        for start, of_part in zip(self.starts, self.rows, strict=True):
            for offset, length in of_part:
                if runs and sum(runs[-1]) == start + offset:
                    runs[-1] = (runs[-1][0], runs[-1][1] + length)
                else:
                    runs.append((start + offset, length))
        return runs

    def place(self, part: int | None) -> Run:
        """The rows of the rank's tensor that hold a part of the whole parameter; None: all of them."""
        counts = [sum(length for _, length in runs) for runs in self.rows]
        return (0, sum(counts)) if part is None else (sum(counts[:part]), counts[part])


def rank_slice(whole: Parameter, own: Parameter, ranks: Ranks) -> RankSlice:
    """Where the rank's part of a parameter is in all of it."""
    num_held = len(own.parts)
    first = ranks.rank * num_held if num_held < len(whole.parts) else 0
    rows: list[tuple[Run, ...]] = [()] * len(whole.parts)
    for part in range(first, first + num_held):
        pairs = zip(whole.segments_of(part), own.segments_of(part - first), strict=True)
        rows[part] = _runs(list(pairs), ranks)
    columns = None if own.in_features == whole.in_features else _piece(whole.in_features, own.in_features, ranks)
    return RankSlice(tuple(rows), tuple(accumulate(whole.parts[:-1], initial=0)), columns, ranks)


def _runs(segments: list[tuple[int, int]], ranks: Ranks) -> tuple[Run, ...]:
    """segments: rows of each segment of a part, in all and on the rank."""
    runs, start = [], 0
    for whole, own in segments:
        offset, length = _piece(whole, own, ranks)
        runs.append((start + offset, length))
        start += whole
    return tuple(runs)


def _piece(whole: int, own: int, ranks: Ranks) -> Run:
    num_pieces = -(-whole // own)
    start = ranks.rank * num_pieces // ranks.size * own
    return start, min(own, whole - start)
