"""packed_linear on a CPU with AVX-512: distributes pairs of panels, each with a chunk of rows, over the threads."""

import numpy as np
import torch
from numba import carray, cfunc, float32, njit

from pagewire_kernels.cpu.gated import GATED_KINDS, activate_columns
from pagewire_kernels.cpu.simd_ir import LANES
from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.packed_linear.cpu_tile import (
    MAX_TILE_ROWS,
    TILE_COLUMNS,
    multiply_floats,
    multiply_pairs,
    round_row,
)
from pagewire_kernels.packed_linear.layout import PANEL_COLUMNS, PackedWeight

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_CHUNK_ROWS = 96
"""Rows that share one read of a pair of panels: with the panels they fit the second-level cache."""
_MIN_CHUNK_ROWS = 24
_BLOCK_STEPS = 1024
"""Steps along the input features after which sums go to memory and back, so that panels stay in the second-level cache
from one tile of rows to the next. Nothing is rounded by it."""
_STEP_BYTES = 4 * PANEL_COLUMNS
_ROWS_PER_READ = 8
"""Rows whose products take about as long as reading the weight."""


@njit(nogil=True, error_model="numpy", cache=True)
def _round_rows(x, x_row, num_rows, in_features, target, target_row):
    """Rounds rows of float32 to bfloat16 of whole vectors, the rest of the last vector zero; tensors are addresses."""
    whole, tail = in_features // LANES, in_features % LANES
    last = np.zeros(LANES, np.float32)
    for row in range(num_rows):
        source, place = x + row * x_row, target + row * target_row
        round_row(source, place, whole)
        if tail > 0:
            last[:tail] = carray(pointer(source + 4 * whole * LANES, float32), (tail,))
            round_row(last.ctypes.data, place + 2 * whole * LANES, 1)
    # This use keeps the array alive.
    last[0] = np.float32(0)


@njit(nogil=True, error_model="numpy", cache=True)
def _multiply(of_pairs, num_rows, x, x_row, first, second, num_steps, out, out_row):
    """out[num_rows, TILE_COLUMNS] = x @ two panels; tensors are addresses, row lengths in bytes."""
    for step in range(0, num_steps, _BLOCK_STEPS):
        steps, skip = min(_BLOCK_STEPS, num_steps - step), step * _STEP_BYTES
        fresh = 1 if step == 0 else 0
        if of_pairs:
            multiply_pairs(num_rows, x + 4 * step, x_row, first + skip, second + skip, steps, out, out_row, fresh)
        else:
            multiply_floats(num_rows, x + 4 * step, x_row, first + skip, second + skip, steps, out, out_row, fresh)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _finish(sums, num_rows, num_columns, bias, second_bias, kind, out, out_row):
    """Adds the bias to rows of TILE_COLUMNS sums, activates those that are gated, and writes num_columns of each.

    sums, out: addresses; bias, second_bias: addresses for the first and the second panel's columns, 0: none. kind: of
    GATED_KINDS, -1: not gated.
    """
    for row in range(num_rows):
        source, target = sums + 4 * row * TILE_COLUMNS, out + row * out_row
        values = carray(pointer(source, float32), (TILE_COLUMNS,))
        if bias != 0:
            added = carray(pointer(bias, float32), (min(num_columns, PANEL_COLUMNS),))
            for i in range(added.size):
                values[i] += added[i]
            if kind >= 0 or num_columns > PANEL_COLUMNS:
                left = PANEL_COLUMNS if kind >= 0 else num_columns - PANEL_COLUMNS
                added = carray(pointer(second_bias, float32), (left,))
                for i in range(left):
                    values[PANEL_COLUMNS + i] += added[i]
        if kind >= 0:
            activate_columns(kind, source, source + 4 * PANEL_COLUMNS, target, num_columns)
        else:
            written = carray(pointer(target, float32), (num_columns,))
            for i in range(num_columns):
                written[i] = values[i]


@cfunc(WORKER, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (15,))
    num_rows, chunk_rows, num_items, x, x_row, in_features = a[1], a[2], a[3], a[4], a[5], a[6]
    panels, num_steps, out, out_columns, bias, kind = a[7], a[8], a[9], a[10], a[11], a[12]
    of_pairs = a[13] != 0
    columns_per_item = PANEL_COLUMNS if kind >= 0 else TILE_COLUMNS
    num_pairs = (out_columns + columns_per_item - 1) // columns_per_item
    padded = (in_features + LANES - 1) // LANES * LANES
    scratch = np.empty(chunk_rows * padded if of_pairs else 1, np.uint16)
    sums = np.empty(chunk_rows * TILE_COLUMNS, np.float32)
    rounded_chunk = np.int64(-1)
    while True:
        item = take(args, 1)
        if item >= num_items:
            break
        chunk, pair = item // num_pairs, item % num_pairs
        rows = min(chunk_rows, num_rows - chunk * chunk_rows)
        source, source_row = x + chunk * chunk_rows * x_row, x_row
        if of_pairs:
            source_row = 2 * padded
            if chunk != rounded_chunk:
                _round_rows(source, x_row, rows, in_features, scratch.ctypes.data, source_row)
                rounded_chunk = chunk
            source = scratch.ctypes.data
        column = pair * columns_per_item
        columns = min(columns_per_item, out_columns - column)
        panel_bytes = num_steps * _STEP_BYTES
        first = panels + column // PANEL_COLUMNS * panel_bytes
        second = first + (out_columns // PANEL_COLUMNS if kind >= 0 else 1) * panel_bytes
        if kind < 0 and columns <= PANEL_COLUMNS:
            second = first  # There is none; what it yields is not written.
        written, written_row = out + 4 * (chunk * chunk_rows * out_columns + column), 4 * out_columns
        is_direct = bias == 0 and columns == TILE_COLUMNS
        target, target_row = sums.ctypes.data, 4 * TILE_COLUMNS
        if is_direct:
            target, target_row = written, written_row
        _multiply(of_pairs, rows, source, source_row, first, second, num_steps, target, target_row)
        if not is_direct:
            bias_at = bias + 4 * column if bias != 0 else 0
            second_bias = bias_at + 4 * (out_columns if kind >= 0 else PANEL_COLUMNS)
            _finish(target, rows, columns, bias_at, second_bias, kind, written, written_row)
    # These uses keep the scratch alive: numba frees an array after its last use, and an address is none.
    scratch[0] = 0
    sums[0] = np.float32(0)


_ADDRESS: int = _worker.address


def packed_linear(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """See the package."""
    if x.dtype is not torch.float32 or x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"x must be float32 of [num_rows, {weight.in_features}], not {x.dtype} of {list(x.shape)}")
    x = x if x.stride(1) == 1 else x.contiguous()
    num_rows, panels = x.shape[0], weight.panels
    out_columns = weight.out_features if activation is None else weight.out_features // 2
    out = torch.empty((num_rows, out_columns))
    work = weight.out_features * weight.in_features * (1 + num_rows // _ROWS_PER_READ)
    num_threads = team_size(work)
    num_pairs = -(-weight.out_features // TILE_COLUMNS)
    chunk_rows = _chunk_rows(num_rows, num_pairs, num_threads)
    num_chunks = -(-num_rows // chunk_rows)
    kind = -1 if activation is None else GATED_KINDS[activation]
    shape = (num_rows, chunk_rows, num_chunks * num_pairs, x.data_ptr(), 4 * x.stride(0), weight.in_features)
    bias_address = 0 if bias is None else bias.data_ptr()
    of_pairs = int(panels.dtype is torch.bfloat16)
    rest = (panels.data_ptr(), panels.shape[1], out.data_ptr(), out_columns, bias_address, kind, of_pairs)
    launch(_ADDRESS, num_threads, (*shape, *rest))
    return out


def _chunk_rows(num_rows: int, num_pairs: int, num_threads: int) -> int:
    """Rows of a chunk: even parts of whole tiles, and so many of them that every thread has work."""
    most = _CHUNK_ROWS
    while most > _MIN_CHUNK_ROWS and num_pairs * (num_rows // most) < 4 * num_threads:
        most //= 2
    even = -(-num_rows // max(1, -(-num_rows // most)))
    return max(MAX_TILE_ROWS, -(-even // MAX_TILE_ROWS) * MAX_TILE_ROWS)
