"""Tiles for kernels that work on the rows of a matrix, each by itself."""

from dataclasses import dataclass

MIN_ELEMENTS = 2048
"""Elements of a tile, at least: 4 KB of bfloat16 keep a program's loads in flight long enough to hide its start. Rows
shorter than that share a program."""
ELEMENTS_PER_THREAD = 32
"""Four independent 16-byte loads of bfloat16 from each operand: few warps, so that sums across them are cheap, and
enough bytes in flight to fill the memory's latency."""
MAX_WARPS = 16


@dataclass(frozen=True, slots=True)
class RowTile:
    """Tile of one program. It depends on the row's width alone, so that no batch size needs a compilation."""

    rows: int
    columns: int
    """Columns of the tile; a power of two."""
    num_warps: int


def row_tile(width: int, max_columns: int | None = None) -> RowTile:
    """Returns the tile for rows of `width` elements.

    Args:
        max_columns: Widest tile that a row may be cut into, a power of two; None: a tile spans the row.
    """
    columns = 1 << (width - 1).bit_length()
    if max_columns is not None:
        columns = min(columns, max_columns)
    rows = max(1, MIN_ELEMENTS // columns)
    num_warps = min(MAX_WARPS, max(1, rows * columns // (32 * ELEMENTS_PER_THREAD)))
    return RowTile(rows, columns, num_warps)
