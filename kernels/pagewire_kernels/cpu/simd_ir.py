"""LLVM IR building blocks of the explicit SIMD in simd.py: each function emits code at the builder's position.

They take float32 values or vectors of LANES of them alike, and byte addresses held in int64, because passing integers
to a compiled kernel costs tens of nanoseconds where passing an array costs a microsecond. Nothing checks bounds.
"""

import math

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value
from numba.core import cgutils

LANES = 16
"""float32 values in a vector, which LLVM splits into what the machine has: two AVX2 registers or one of AVX-512."""

F32 = ir.FloatType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)


class _BFloat16Type(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16Type)

    def __hash__(self) -> int:
        return hash(_BFloat16Type)


BFLOAT16 = _BFloat16Type()
_CONTRACT = ("contract",)
_LOG_COEFFICIENTS = (
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def like(value_type: ir.Type, element: ir.Type) -> ir.Type:
    """Returns the type `element`, or a vector of it if value_type is a vector."""
    return ir.VectorType(element, value_type.count) if isinstance(value_type, ir.VectorType) else element


def constant(value_type: ir.Type, value: float) -> ir.Constant:
    """`value` in every lane."""
    if isinstance(value_type, ir.VectorType):
        return ir.Constant(value_type, [value] * value_type.count)
    return ir.Constant(value_type, value)


def splat(builder: Builder, scalar: Value) -> Value:
    """A vector of LANES copies of a scalar."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    lane0 = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(lane0, undefined, zeros)


def load(builder: Builder, address: Value, element_type: ir.Type) -> Value:
    """A scalar or vector at a byte address."""
    pointer = builder.inttoptr(address, element_type.as_pointer())
    return builder.load(pointer, align=4)


def store(builder: Builder, value: Value, address: Value) -> None:
    """Stores a scalar or vector at a byte address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def float_address(builder: Builder, address: Value, count: Value | int) -> Value:
    """The address `count` float32 values after `address`."""
    if isinstance(count, int):
        return builder.add(address, ir.Constant(I64, 4 * count))
    return builder.add(address, builder.shl(count, ir.Constant(I64, 2)))


def call_intrinsic(
    builder: Builder, name: str, result: ir.Type, arguments: list[Value], flags: tuple[str, ...] = ()
) -> Value:
    """Calls an LLVM intrinsic that is overloaded by the type of its last argument."""
    overload = arguments[-1].type
    suffix = f"v{overload.count}f32" if isinstance(overload, ir.VectorType) else "f32"
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, f"{name}.{suffix}")
    return builder.call(function, arguments, fastmath=flags)


def multiply_add(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """a * b + c, rounded once where the machine can."""
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


def dot_pairs(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """c + the dot product of each lane's pair of bfloat16 values in a and b, vectors of LANES int32: AVX512-BF16.

    Sums are float32. The processor takes subnormal numbers for zero.
    """
    pairs = ir.VectorType(BFLOAT16, 2 * LANES)
    function_type = ir.FunctionType(VECTOR, [VECTOR, pairs, pairs])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(function, [c, builder.bitcast(a, pairs), builder.bitcast(b, pairs)])


def exp(builder: Builder, x: Value) -> Value:
    """e**x to 1e-7 relative, by Cephes' expf: 2**n times a polynomial in the remainder. Below -87: exactly 0."""
    float_type, int_type = x.type, like(x.type, I32)
    low, high = constant(float_type, -87.0), constant(float_type, 88.0)
    clamped = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    scaled = builder.fmul(clamped, constant(float_type, 1.0 / math.log(2.0)))
    n = call_intrinsic(builder, "llvm.nearbyint", float_type, [scaled])
    r = multiply_add(builder, n, constant(float_type, -0.693359375), clamped)
    r = multiply_add(builder, n, constant(float_type, 2.12194440e-4), r)
    polynomial = constant(float_type, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        polynomial = multiply_add(builder, polynomial, r, constant(float_type, coefficient))
    one_plus_r = builder.fadd(r, constant(float_type, 1.0))
    mantissa = multiply_add(builder, polynomial, builder.fmul(r, r), one_plus_r)
    exponent = builder.add(builder.fptosi(n, int_type), constant(int_type, 127))
    power = builder.bitcast(builder.shl(exponent, constant(int_type, 23)), float_type)
    result = builder.fmul(mantissa, power)
    return builder.select(builder.fcmp_ordered("<", x, low), constant(float_type, 0.0), result)


def log(builder: Builder, x: Value) -> Value:
    """The natural logarithm of a positive normal number to 1e-7 relative, by Cephes' logf."""
    float_type, int_type = x.type, like(x.type, I32)
    bits = builder.bitcast(x, int_type)
    exponent = builder.sub(builder.lshr(bits, constant(int_type, 23)), constant(int_type, 126))
    fraction = builder.or_(builder.and_(bits, constant(int_type, 0x7FFFFF)), constant(int_type, 0x3F000000))
    m = builder.bitcast(fraction, float_type)
    # m in [1/2, 1); below sqrt(1/2) it is doubled, so that r = m - 1 is small.
    is_low = builder.fcmp_ordered("<", m, constant(float_type, math.sqrt(0.5)))
    m = builder.select(is_low, builder.fadd(m, m), m)
    e = builder.sitofp(builder.select(is_low, builder.sub(exponent, constant(int_type, 1)), exponent), float_type)
    r = builder.fsub(m, constant(float_type, 1.0))
    square = builder.fmul(r, r)
    polynomial = constant(float_type, 7.0376836292e-2)
    for coefficient in _LOG_COEFFICIENTS:
        polynomial = multiply_add(builder, polynomial, r, constant(float_type, coefficient))
    y = builder.fmul(builder.fmul(polynomial, r), square)
    y = multiply_add(builder, e, constant(float_type, -2.12194440e-4), y)
    y = multiply_add(builder, square, constant(float_type, -0.5), y)
    return multiply_add(builder, e, constant(float_type, 0.693359375), builder.fadd(r, y))
