"""Register tiles of packed_linear: a few rows of x times two panels of the weight, with AVX-512.

Every output is one chain of multiply-adds along the input features, whatever tile computes it, so that its bits do not
depend on how many rows there are. 6 rows and 4 vectors of columns fill 24 of the 32 registers with sums.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pagewire_kernels.cpu.simd import HAS_AVX512_BF16
from pagewire_kernels.cpu.simd_ir import (
    BFLOAT16,
    F32,
    I32,
    I64,
    LANES,
    VECTOR,
    call_intrinsic,
    constant,
    dot_pairs,
    load,
    splat,
    store,
)
from pagewire_kernels.packed_linear.layout import PANEL_COLUMNS, PANELS_AT_A_TIME

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

MAX_TILE_ROWS = 6
TILE_COLUMNS = PANEL_COLUMNS * PANELS_AT_A_TIME
_VECTORS = PANEL_COLUMNS // LANES
"""Vectors of a panel's columns."""
_STEP_BYTES = 4 * PANEL_COLUMNS
"""Bytes of a panel's step: one float32 or two bfloat16 of each column."""


def _multiply_add(builder: Builder, scalar: Value, column: Value, total: Value) -> Value:
    return call_intrinsic(builder, "llvm.fma", VECTOR, [scalar, column, total])


def _offset(builder: Builder, address: Value, num_bytes: int) -> Value:
    return builder.add(address, ir.Constant(I64, num_bytes))


def _make_tile(num_rows: int, of_pairs: bool) -> Callable[..., None]:
    """Builds out[num_rows, TILE_COLUMNS] (+)= x[num_rows, depth] @ two panels of [depth, PANEL_COLUMNS].

    Arguments: x and its row length, the two panels, the number of steps, out and its row length, and whether out is
    overwritten (1) or added to (0). Addresses and row lengths in bytes. of_pairs: x and panels are bfloat16 in pairs.
    """
    vector = ir.VectorType(I32, LANES) if of_pairs else VECTOR
    multiply_add = dot_pairs if of_pairs else _multiply_add

    @intrinsic
    def tile(
        typingctx: Any, x: Any, x_row: Any, first: Any, second: Any, steps: Any, out: Any, out_row: Any, fresh: Any
    ) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
            x, x_row, first, second, steps, out, out_row, fresh = arguments
            x_rows = [builder.add(x, builder.mul(x_row, ir.Constant(I64, i))) for i in range(num_rows)]
            out_rows = [builder.add(out, builder.mul(out_row, ir.Constant(I64, i))) for i in range(num_rows)]
            places = [
                _offset(builder, row, 4 * LANES * j) for row in out_rows for j in range(_VECTORS * PANELS_AT_A_TIME)
            ]
            sums = [cgutils.alloca_once_value(builder, constant(VECTOR, 0.0)) for _ in places]
            with builder.if_then(builder.icmp_signed("==", fresh, ir.Constant(I64, 0))):
                for place, total in zip(places, sums, strict=True):
                    builder.store(load(builder, place, VECTOR), total)
            with cgutils.for_range(builder, steps) as loop:
                in_panel = builder.mul(loop.index, ir.Constant(I64, _STEP_BYTES))
                starts = [builder.add(panel, in_panel) for panel in (first, second)]
                columns = [
                    load(builder, _offset(builder, start, 4 * LANES * j), vector)
                    for start in starts
                    for j in range(_VECTORS)
                ]
                in_row = builder.shl(loop.index, ir.Constant(I64, 2))
                for i, row in enumerate(x_rows):
                    scalar = load(builder, builder.add(row, in_row), I32 if of_pairs else F32)
                    spread = splat(builder, scalar)
                    for column, total in zip(columns, sums[i * len(columns) :], strict=False):
                        builder.store(multiply_add(builder, spread, column, builder.load(total)), total)
            for place, total in zip(places, sums, strict=True):
                store(builder, builder.load(total), place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return tile  # type: ignore[no-any-return]


_floats_1 = _make_tile(1, of_pairs=False)
_floats_2 = _make_tile(2, of_pairs=False)
_floats_4 = _make_tile(4, of_pairs=False)
_floats_6 = _make_tile(6, of_pairs=False)


@njit(nogil=True, error_model="numpy", cache=True)
def multiply_floats(num_rows, x, x_row, first, second, steps, out, out_row, fresh):
    """The product of any number of rows with two panels, float32; the other arguments as a tile's."""
    while num_rows >= MAX_TILE_ROWS:
        _floats_6(x, x_row, first, second, steps, out, out_row, fresh)
        x += MAX_TILE_ROWS * x_row
        out += MAX_TILE_ROWS * out_row
        num_rows -= MAX_TILE_ROWS
    if num_rows >= 4:
        _floats_4(x, x_row, first, second, steps, out, out_row, fresh)
        x += 4 * x_row
        out += 4 * out_row
        num_rows -= 4
    if num_rows >= 2:
        _floats_2(x, x_row, first, second, steps, out, out_row, fresh)
        x += 2 * x_row
        out += 2 * out_row
        num_rows -= 2
    if num_rows == 1:
        _floats_1(x, x_row, first, second, steps, out, out_row, fresh)


# Without the instructions the functions of pairs compile to something, and are not called.
_pairs_1 = _make_tile(1, of_pairs=HAS_AVX512_BF16)
_pairs_2 = _make_tile(2, of_pairs=HAS_AVX512_BF16)
_pairs_4 = _make_tile(4, of_pairs=HAS_AVX512_BF16)
_pairs_6 = _make_tile(6, of_pairs=HAS_AVX512_BF16)


@njit(nogil=True, error_model="numpy", cache=True)
def multiply_pairs(num_rows, x, x_row, first, second, steps, out, out_row, fresh):
    """The same for bfloat16 in pairs."""
    while num_rows >= MAX_TILE_ROWS:
        _pairs_6(x, x_row, first, second, steps, out, out_row, fresh)
        x += MAX_TILE_ROWS * x_row
        out += MAX_TILE_ROWS * out_row
        num_rows -= MAX_TILE_ROWS
    if num_rows >= 4:
        _pairs_4(x, x_row, first, second, steps, out, out_row, fresh)
        x += 4 * x_row
        out += 4 * out_row
        num_rows -= 4
    if num_rows >= 2:
        _pairs_2(x, x_row, first, second, steps, out, out_row, fresh)
        x += 2 * x_row
        out += 2 * out_row
        num_rows -= 2
    if num_rows == 1:
        _pairs_1(x, x_row, first, second, steps, out, out_row, fresh)


@intrinsic
def round_row(typingctx: Any, source: Any, target: Any, num_vectors: Any) -> Any:
    """Rounds num_vectors * LANES float32 values at `source` to bfloat16 at `target`, ties to even."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        source, target, num_vectors = arguments
        if not HAS_AVX512_BF16:
            return context.get_dummy_value()
        with cgutils.for_range(builder, num_vectors) as loop:
            x = load(builder, builder.add(source, builder.mul(loop.index, ir.Constant(I64, 4 * LANES))), VECTOR)
            rounded = builder.fptrunc(x, ir.VectorType(BFLOAT16, LANES))
            store(builder, rounded, builder.add(target, builder.mul(loop.index, ir.Constant(I64, 2 * LANES))))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
