"""Finds the runs of blocks that the rows of a batch share, and chooses those that are worth reading once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pagewire_kernels.paged_attention.shared_prefixes import MAX_DEPTH, Ints, PlanLayout, SharedRun

MIN_SAVED_KEYS = 512
"""Reads of a key that a run must save, (rows - 1) * keys: fewer do not pay for the partial results of its rows."""


def find_runs(
    block_tables: Ints, tables: Sequence[int] | Ints, num_blocks: Ints, block_size: int, layout: PlanLayout
) -> list[SharedRun]:
    """Returns the runs of a batch for make_plan, a run before those that continue it.

    Args:
        block_tables: [num_tables, width], as SharedPrefixes.block_tables.
        tables: [num_rows], at most layout.max_rows: the row of block_tables that is each row's.
        num_blocks: [num_rows]: how many of a row's first blocks are full of keys that its next token attends to.
    """
    tables = np.asarray(tables)
    rows = _rows_with_equal_first_blocks(block_tables[tables, 0], num_blocks)
    if not len(rows):
        return []
    order, shared = _sorted_prefixes(block_tables, tables[rows], num_blocks[rows])
    rows = rows[order]
    tree = _tree(shared)
    _choose(tree, block_size, layout)
    return [
        SharedRun(
            int(tables[rows[node.first]]), begin * block_size, node.depth * block_size, rows[node.first : node.end]
        )
        for node, begin in _chosen(tree, 0)
    ]


@dataclass(slots=True, eq=False)
class _Node:
    """Rows first to end, in sorted order, whose first `depth` blocks are the same."""

    first: int
    depth: int
    end: int = 0
    children: list["_Node"] = field(default_factory=list)
    is_chosen: bool = False

    @property
    def num_rows(self) -> int:
        return self.end - self.first


def _rows_with_equal_first_blocks(first_blocks: Ints, num_blocks: Ints) -> npt.NDArray[np.intp]:
    """The rows whose first block another one has too: all others share nothing."""
    candidates = np.flatnonzero(num_blocks > 0)
    _, inverse, counts = np.unique(first_blocks[candidates], return_inverse=True, return_counts=True)
    return candidates[counts[inverse] > 1]


def _sorted_prefixes(block_tables: Ints, tables: Ints, num_blocks: Ints) -> tuple[npt.NDArray[np.intp], list[int]]:
    """Returns an order of rows in which those with a common prefix are neighbours, and of each two neighbours how many
    blocks they share from the start."""
    width = int(num_blocks.max()) + 1
    blocks = np.empty((len(tables), width), np.int32)
    blocks[:, :-1] = block_tables[tables, : width - 1]
    # Where a row's full blocks end, every row has a number of its own.
    own = -1 - np.arange(len(tables), dtype=np.int32)[:, None]
    np.copyto(blocks, own, where=np.arange(width) >= num_blocks[:, None])
    # Any order by bytes does.
    order = np.argsort(blocks.view(np.dtype((np.void, 4 * width)))[:, 0])
    blocks = blocks[order]
    differ = blocks[1:] != blocks[:-1]
    return order, differ.argmax(axis=1).tolist()


def _tree(shared: list[int]) -> _Node:
    """The tree of common prefixes of sorted rows: its root shares nothing, its leaves, single rows, are left out.

    Args:
        shared: Blocks that rows i and i + 1 share.
    """
    path = [_Node(first=0, depth=0)]
    for row, depth in enumerate(shared):
        first = row
        while path[-1].depth > depth:
            node = path.pop()
            node.end = row + 1
            first = node.first
            # Its parent may be yet to come: a node that begins where it does, of the depth at hand.
            if path[-1].depth < depth:
                path.append(_Node(first, depth, children=[node]))
            else:
                path[-1].children.append(node)
        if path[-1].depth < depth:
            path.append(_Node(first, depth))
    while len(path) > 1:
        node = path.pop()
        node.end = len(shared) + 1
        path[-1].children.append(node)
    path[0].end = len(shared) + 1
    return path[0]


def _choose(root: _Node, block_size: int, layout: PlanLayout) -> None:
    """Marks the nodes whose keys are read once for all of their rows: those that save most, while there is room.

    What a node that is not chosen shares is read by the chosen ones below it, or by the rows themselves.
    """
    saved: list[tuple[int, int, _Node]] = []
    parents = [(root, 0, 0)]
    for parent, begin, level in parents:
        for node in parent.children:
            num_saved = (node.num_rows - 1) * (node.depth - begin) * block_size
            pays = num_saved >= MIN_SAVED_KEYS and level < MAX_DEPTH
            if pays:
                saved.append((-num_saved, len(saved), node))
            parents.append((node, node.depth, level + 1) if pays else (node, begin, level))
    entries, tiles = layout.max_entries, layout.max_tiles
    for _, _, node in sorted(saved):
        num_tiles = layout.num_tiles(node.num_rows)
        if node.num_rows <= entries and num_tiles <= tiles:
            node.is_chosen = True
            entries -= node.num_rows
            tiles -= num_tiles


def _chosen(node: _Node, begin: int) -> Iterator[tuple[_Node, int]]:
    """Yields the chosen nodes below a node, each with the block that its run begins at."""
    for child in node.children:
        if child.is_chosen:
            yield child, begin
        yield from _chosen(child, child.depth if child.is_chosen else begin)
