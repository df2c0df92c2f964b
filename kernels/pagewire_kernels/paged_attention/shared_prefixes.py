"""Which keys the rows of a batch share: the plan by which decode attention on a GPU reads each shared run once.

Rows (sequences with one new token each) whose block tables begin with the same blocks form a tree of runs. A run's keys
are read once for all of its rows, in tiles of as many rows as fill the tensor cores; a row itself reads only the keys
behind its last run. What a run gave a row and what the row found itself are added up as the splits of a sequence are,
so the result is that of plain attention but for the rounding of float32 sums (Hydragen, arXiv:2402.05099; a tree of
any depth: DeFT, arXiv:2404.00242). Runs are cut so that all programs read equally many keys (Stream-K,
arXiv:2301.03598).

The plan is one array of fixed size that the kernels read on the device, so that a captured graph serves any tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.integer[Any]]
_Array = TypeVar("_Array", npt.NDArray[np.int32], torch.Tensor)

MAX_SHARED_SPLITS = 32
"""Most partial results that runs leave for one row."""
MAX_DEPTH = 5
"""Most runs that one row is part of."""
_MIN_PIECE = 128
"""Keys below which cutting a run costs more than it evens out, since each piece has a prologue and results to write."""

# Fields of an item, and of a row.
ITEM_TABLE, ITEM_BEGIN, ITEM_END, ITEM_FIRST_ENTRY, ITEM_NUM_ROWS, ITEM_PIECE = range(6)
ITEM_FIELDS = 8
ROW_START, ROW_FIRST_SLOT, ROW_NUM_SLOTS = range(3)
ROW_FIELDS = 4


@dataclass(frozen=True, slots=True)
class SharedRun:
    """Keys that several rows share: those of whole blocks at the same places of their block tables."""

    table: int
    """The row of SharedPrefixes.block_tables that names the blocks."""
    begin: int
    """First key: 0, or where the run before it on its rows' path ends. A multiple of the block size, as is end."""
    end: int
    rows: Sequence[int] | Ints
    """The rows, none twice."""


@dataclass(frozen=True, slots=True)
class PlanLayout:
    """Sizes of a plan: what it has room for, and how many programs share it out."""

    max_rows: int
    """Most rows of a batch."""
    rows_per_tile: int
    """Rows of one tile of queries."""
    num_shares: int
    """Programs for each KV head."""
    tile: int
    """Keys that a program takes at once; runs are cut at multiples of it."""

    @property
    def max_entries(self) -> int:
        """Most rows of all runs together."""
        return 3 * self.max_rows

    @property
    def max_tiles(self) -> int:
        """Most tiles of rows of all runs together."""
        return self.max_entries // min(2, self.rows_per_tile)

    @property
    def max_items(self) -> int:
        """Tiles, cut at the ends of shares."""
        return self.max_tiles + self.num_shares

    @property
    def max_slots(self) -> int:
        """Most partial results of all rows together."""
        uncut = self.max_entries + self.num_shares * self.rows_per_tile
        return min(uncut, self.max_rows * MAX_SHARED_SPLITS)

    @property
    def num_values(self) -> int:
        """Length of the plan's array."""
        return self._offsets()[-1]

    def views(self, values: _Array) -> tuple[_Array, _Array, _Array, _Array]:
        """Cuts a plan's array [num_values] into share starts, items, entries and rows, each contiguous."""
        a, b, c, d, e = self._offsets()
        shares, items, entries, rows = values[a:b], values[b:c], values[c:d], values[d:e]
        return shares, items.reshape(-1, ITEM_FIELDS), entries.reshape(-1, 2), rows.reshape(-1, ROW_FIELDS)

    def _offsets(self) -> tuple[int, int, int, int, int]:
        # Each part starts at a multiple of 16 bytes.
        shares = -(-(self.num_shares + 1) // 4) * 4
        items = shares + self.max_items * ITEM_FIELDS
        entries = items + -(-2 * self.max_entries // 4) * 4
        return 0, shares, items, entries, entries + self.max_rows * ROW_FIELDS

    def num_tiles(self, num_rows: int) -> int:
        """Tiles of rows of a run."""
        return -(-num_rows // self.rows_per_tile)


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """A plan on the device. One that make_plan made of no runs, and one that is all zeros, shares nothing."""

    layout: PlanLayout
    block_tables: torch.Tensor
    """[num_tables, max_blocks] int32, rows contiguous: as AttentionInputs has them, or others with the same blocks, but
    those of a row that has become void must still name its blocks."""
    shares: torch.Tensor
    """[num_shares + 1 or more] int32: where each share's items start."""
    items: torch.Tensor
    """[max_items, ITEM_FIELDS] int32: a tile of rows and a range of keys each, share after share."""
    entries: torch.Tensor
    """[max_entries, 2] int32: the rows of all tiles: a row, and the slot of its first partial result of that run."""
    rows: torch.Tensor
    """[max_rows, ROW_FIELDS] int32: a row's first key of its own, its first slot, and how many it has."""

    @classmethod
    def of(cls, layout: PlanLayout, values: torch.Tensor, block_tables: torch.Tensor) -> "SharedPrefixes":
        """values: [layout.num_values] int32 on the device, as make_plan returns it; may change between launches."""
        return cls(layout, block_tables, *layout.views(values))


def make_plan(layout: PlanLayout, runs: Sequence[SharedRun]) -> npt.NDArray[np.int32]:
    """Returns the plan [layout.num_values] of a batch.

    Args:
        runs: At most layout.max_entries rows, layout.max_tiles tiles, and MAX_DEPTH runs on any row's path. The runs
            of a row start at key 0 and follow each other without gaps.
    """
    values = np.zeros(layout.num_values, np.int32)
    if not runs:
        return values
    shares, items, entries, rows = layout.views(values)
    counts = np.array([len(run.rows) for run in runs])
    rows_of_runs = np.concatenate([np.asarray(run.rows) for run in runs])
    own_starts = rows[:, ROW_START]
    np.maximum.at(own_starts, rows_of_runs, np.repeat([run.end for run in runs], counts))
    tiles = _tiles(layout, runs)
    share_items = _cut(layout, tiles, int(own_starts.max()))
    pieces = [item for items_of_share in share_items for item in items_of_share]
    assert len(rows_of_runs) <= layout.max_entries
    assert len(tiles) <= layout.max_tiles
    items[: len(pieces), : ITEM_PIECE + 1] = pieces
    num_items = list(accumulate(map(len, share_items)))
    shares[1 : layout.num_shares + 1] = num_items + [len(pieces)] * (layout.num_shares - len(num_items))
    # Each row of a tile gets a slot for each of the tile's pieces; a row's slots are neighbours.
    num_pieces = np.zeros(len(rows_of_runs), np.int64)
    for _, _, _, first_entry, num_rows, piece in pieces:
        num_pieces[first_entry : first_entry + num_rows] = piece + 1
    order = np.argsort(rows_of_runs, kind="stable")
    ends = np.cumsum(num_pieces[order])
    entries[: len(order), 0] = rows_of_runs
    entries[order, 1] = ends - num_pieces[order]
    num_slots = np.bincount(rows_of_runs, weights=num_pieces, minlength=layout.max_rows).astype(np.int32)
    assert num_slots.max() <= MAX_SHARED_SPLITS
    assert ends[-1] <= layout.max_slots
    rows[:, ROW_NUM_SLOTS] = num_slots
    rows[:, ROW_FIRST_SLOT] = np.cumsum(num_slots) - num_slots
    return values


_Item = tuple[int, int, int, int, int, int]


def _tiles(layout: PlanLayout, runs: Sequence[SharedRun]) -> list[_Item]:
    """Items of whole runs, one for each tile of rows."""
    tiles: list[_Item] = []
    entry = 0
    for run in runs:
        end = entry + len(run.rows)
        tiles += [
            (run.table, run.begin, run.end, first, min(layout.rows_per_tile, end - first), 0)
            for first in range(entry, end, layout.rows_per_tile)
        ]
        entry = end
    return tiles


def _cut(layout: PlanLayout, tiles: list[_Item], longest_path: int) -> list[list[_Item]]:
    """Shares the tiles out in order, in equal numbers of keys. Returns the items of each share that has any."""
    num_keys = sum(end - begin for _, begin, end, *_ in tiles)
    # A run of L keys goes into at most L / (share - _MIN_PIECE) + 2 pieces.
    least = max(2 * _MIN_PIECE, longest_path // (MAX_SHARED_SPLITS - 2 * MAX_DEPTH) + 1 + _MIN_PIECE)
    share = max(-(-num_keys // layout.num_shares), least)
    share = -(-share // layout.tile) * layout.tile
    shares: list[list[_Item]] = [[]]
    left = share
    for table, begin, end, entry, num_rows, _ in tiles:
        piece = 0
        while begin < end:
            if left < _MIN_PIECE and left < end - begin and len(shares) < layout.num_shares:
                shares.append([])
                left += share
            length = end - begin
            if length - left >= _MIN_PIECE and len(shares) < layout.num_shares:
                length = left
            shares[-1].append((table, begin, begin + length, entry, num_rows, piece))
            begin += length
            left -= length
            piece += 1
    return shares
