"""Explicit SIMD for the numba kernels, for loops that LLVM does not vectorise reliably.

All intrinsics take byte addresses held in int64. Importing this module imports numba; only the cpu.py files do.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pagewire_kernels.cpu import simd_ir
from pagewire_kernels.cpu.simd_ir import (
    F32,
    I32,
    I64,
    LANES,
    VECTOR,
    call_intrinsic,
    constant,
    float_address,
    load,
    multiply_add,
    splat,
    store,
)

MASKED = -1e30
"""Score of a masked key, in place of minus infinity, so that the arithmetic stays finite."""
_LINE_BYTES = 64
"""A line of the caches."""
_HOST_FEATURES = llvm.get_host_cpu_features().flatten()
_FEATURES = (_HOST_FEATURES if config.CPU_FEATURES is None else config.CPU_FEATURES).split(",")
"""Features of the CPU that numba compiles for: this one, unless numba's settings name others, or none ("")."""
HAS_AVX512 = "+avx512f" in _FEATURES
"""Whether it has 32 registers of 512 bits instead of 16 of 256."""
HAS_AVX512_BF16 = HAS_AVX512 and "+avx512bf16" in _FEATURES
"""Whether it multiplies pairs of bfloat16 and adds them up in float32."""


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """e**x of one float32. LLVM vectorises loops over it."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        return simd_ir.exp(builder, arguments[0])

    return types.float32(types.float32), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any, num_bytes: Any) -> Any:
    """Has the second-level cache fetch num_bytes from `address`, and does not wait. Any address is allowed.

    A core waits for few lines of its first-level cache at a time; the second level takes twice as many.
    """

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        address, num_bytes = arguments
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, second_level, data = (ir.Constant(I32, flag) for flag in (0, 2, 1))
        zero, line = ir.Constant(I64, 0), ir.Constant(I64, _LINE_BYTES)
        with cgutils.for_range_slice(builder, zero, num_bytes, line) as (offset, _):
            place = builder.inttoptr(builder.add(address, offset), pointer)
            builder.call(function, [place, read, second_level, data])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def make_gemm_tile(num_rows: int, num_columns: int, *, accumulate: bool, num_chains: int = 1) -> Callable[..., None]:
    """Builds C[num_rows, num_columns * LANES] (+)= A[num_rows, depth] @ B[depth, num_columns * LANES].

    The result stays in registers over the whole depth. num_chains sums run side by side, so that a small tile need not
    wait for each multiply-add before the next. Arguments: addresses of A, B and C, each with its row length in
    elements, and the depth.
    """

    @intrinsic
    def gemm_tile(typingctx: Any, a: Any, lda: Any, b: Any, ldb: Any, depth: Any, c: Any, ldc: Any) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
            a, lda, b, ldb, depth, c, ldc = arguments
            a_rows = [float_address(builder, a, builder.mul(lda, ir.Constant(I64, i))) for i in range(num_rows)]
            c_rows = [float_address(builder, c, builder.mul(ldc, ir.Constant(I64, i))) for i in range(num_rows)]
            c_cells = [float_address(builder, row, j * LANES) for row in c_rows for j in range(num_columns)]
            zero = constant(VECTOR, 0.0)
            chains = [[cgutils.alloca_once_value(builder, zero) for _ in c_cells] for _ in range(num_chains)]
            if accumulate:
                for cell, address in zip(chains[0], c_cells, strict=True):
                    builder.store(load(builder, address, VECTOR), cell)

            def step(index: Value, cells: list[Value]) -> None:
                b_row = float_address(builder, b, builder.mul(index, ldb))
                columns = [load(builder, float_address(builder, b_row, j * LANES), VECTOR) for j in range(num_columns)]
                scalars = [splat(builder, load(builder, float_address(builder, row, index), F32)) for row in a_rows]
                products = [(scalar, column) for scalar in scalars for column in columns]
                for (scalar, column), cell in zip(products, cells, strict=True):
                    builder.store(multiply_add(builder, scalar, column, builder.load(cell)), cell)

            stride, one = ir.Constant(I64, num_chains), ir.Constant(I64, 1)
            whole = builder.mul(builder.udiv(depth, stride), stride)
            with cgutils.for_range_slice(builder, ir.Constant(I64, 0), whole, stride) as (index, _):
                for i, cells in enumerate(chains):
                    step(builder.add(index, ir.Constant(I64, i)), cells)
            if num_chains > 1:
                with cgutils.for_range_slice(builder, whole, depth, one) as (index, _):
                    step(index, chains[0])
            for i, address in enumerate(c_cells):
                total = builder.load(chains[0][i])
                for cells in chains[1:]:
                    total = builder.fadd(total, builder.load(cells[i]))
                store(builder, total, address)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return gemm_tile  # type: ignore[no-any-return]


def make_decayed_update(num_columns: int) -> Callable[..., None]:
    """Builds C[depth, num_columns * LANES] = decay * C + x y, with a column x [depth] and a row y.

    Arguments: addresses of x, y and C, which is contiguous, the depth and decay, a float32.
    """

    @intrinsic
    def decayed_update(typingctx: Any, x: Any, y: Any, c: Any, depth: Any, decay: Any) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
            x, y, c, depth, decay = arguments
            row = [load(builder, float_address(builder, y, j * LANES), VECTOR) for j in range(num_columns)]
            decays, width = splat(builder, decay), ir.Constant(I64, num_columns * LANES)
            with cgutils.for_range(builder, depth) as loop:
                scalar = splat(builder, load(builder, float_address(builder, x, loop.index), F32))
                c_row = float_address(builder, c, builder.mul(loop.index, width))
                for j, column in enumerate(row):
                    address = float_address(builder, c_row, j * LANES)
                    old = builder.fmul(load(builder, address, VECTOR), decays)
                    store(builder, multiply_add(builder, scalar, column, old), address)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4, types.float32), codegen

    return decayed_update  # type: ignore[no-any-return]


@intrinsic
def row_softcap(typingctx: Any, row: Any, num_vectors: Any, cap: Any) -> Any:
    """Replaces each of num_vectors * LANES values x at `row` by cap * tanh(x / cap)."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        row, num_vectors, cap = arguments
        caps, one, two = splat(builder, cap), constant(VECTOR, 1.0), constant(VECTOR, 2.0)
        with cgutils.for_range(builder, num_vectors) as loop:
            address = float_address(builder, row, builder.mul(loop.index, ir.Constant(I64, LANES)))
            x = builder.fdiv(load(builder, address, VECTOR), caps)
            # tanh(x) = 1 - 2 / (exp(2x) + 1); saturates correctly at both ends.
            quotient = builder.fdiv(two, builder.fadd(simd_ir.exp(builder, builder.fmul(x, two)), one))
            store(builder, builder.fmul(caps, builder.fsub(one, quotient)), address)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


@intrinsic
def row_slope(typingctx: Any, row: Any, num_vectors: Any, slope: Any, distance: Any) -> Any:
    """Subtracts slope * (distance - j) from the j-th of num_vectors * LANES values at `row`; distance is a whole
    float32."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        row, num_vectors, slope, distance = arguments
        slopes, step = splat(builder, builder.fneg(slope)), constant(VECTOR, float(LANES))
        ramp = ir.Constant(VECTOR, [float(lane) for lane in range(LANES)])
        distances = cgutils.alloca_once_value(builder, builder.fsub(splat(builder, distance), ramp))
        with cgutils.for_range(builder, num_vectors) as loop:
            address = float_address(builder, row, builder.mul(loop.index, ir.Constant(I64, LANES)))
            current = builder.load(distances)
            store(builder, multiply_add(builder, slopes, current, load(builder, address, VECTOR)), address)
            builder.store(builder.fsub(current, step), distances)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.float32), codegen


@intrinsic
def row_max(typingctx: Any, row: Any, num_vectors: Any) -> Any:
    """The largest of num_vectors * LANES values at `row`, at least MASKED."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        row, num_vectors = arguments
        best = cgutils.alloca_once_value(builder, constant(VECTOR, MASKED))
        with cgutils.for_range(builder, num_vectors) as loop:
            x = load(builder, float_address(builder, row, builder.mul(loop.index, ir.Constant(I64, LANES))), VECTOR)
            old = builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", x, old), x, old), best)
        return call_intrinsic(builder, "llvm.vector.reduce.fmax", F32, [builder.load(best)])

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def row_exp(typingctx: Any, row: Any, num_vectors: Any, shift: Any) -> Any:
    """Replaces each of num_vectors * LANES values x at `row` by exp(x - shift); returns their sum."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        row, num_vectors, shift = arguments
        shifts = splat(builder, shift)
        total = cgutils.alloca_once_value(builder, constant(VECTOR, 0.0))
        with cgutils.for_range(builder, num_vectors) as loop:
            address = float_address(builder, row, builder.mul(loop.index, ir.Constant(I64, LANES)))
            e = simd_ir.exp(builder, builder.fsub(load(builder, address, VECTOR), shifts))
            store(builder, e, address)
            builder.store(builder.fadd(builder.load(total), e), total)
        return call_intrinsic(
            builder, "llvm.vector.reduce.fadd", F32, [ir.Constant(F32, 0.0), builder.load(total)], ("reassoc",)
        )

    return types.float32(types.int64, types.int64, types.float32), codegen
