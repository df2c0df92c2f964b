"""The Gumbel noise of reference.py, GROUP tokens at a time, in vector registers."""

from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value
from numba import types
from numba.extending import intrinsic

from pagewire_kernels.cpu.simd_ir import I32, LANES, VECTOR, constant, log, multiply_add, store

GROUP = 4 * LANES
"""Tokens whose noise is made at once: four of each of LANES counters."""
MAX_NOISE = 17.0
"""No noise is larger: -log(-log(1 - 2**-24)) = 16.64."""

_WORDS = ir.VectorType(I32, LANES)
_WIDE = ir.VectorType(ir.IntType(64), LANES)
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _splat_word(builder: Builder, word: Value) -> Value:
    lane0 = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), word, ir.Constant(I32, 0))
    return builder.shuffle_vector(lane0, ir.Constant(_WORDS, ir.Undefined), constant(_WORDS, 0))


def _halves(builder: Builder, value: Value) -> tuple[Value, Value]:
    """Low and high 32 bits of an int64, in every lane."""
    high = builder.lshr(value, ir.Constant(value.type, 32))
    return _splat_word(builder, builder.trunc(value, I32)), _splat_word(builder, builder.trunc(high, I32))


def _multiply(builder: Builder, words: Value, multiplier: int) -> tuple[Value, Value]:
    """Low and high 32 bits of the products."""
    product = builder.mul(builder.zext(words, _WIDE), constant(_WIDE, multiplier))
    return builder.trunc(product, _WORDS), builder.trunc(builder.lshr(product, constant(_WIDE, 32)), _WORDS)


def _philox(builder: Builder, counter: list[Value], key: list[Value]) -> list[Value]:
    """Philox-4x32-10 (Salmon et al., SC 2011) of LANES counters."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low0, high0 = _multiply(builder, c0, _MULTIPLIERS[0])
        low1, high1 = _multiply(builder, c2, _MULTIPLIERS[1])
        c0, c1 = builder.xor(builder.xor(high1, c1), k0), low1
        c2, c3 = builder.xor(builder.xor(high0, c3), k1), low0
        k0 = builder.add(k0, constant(_WORDS, _WEYL[0]))
        k1 = builder.add(k1, constant(_WORDS, _WEYL[1]))
    return [c0, c1, c2, c3]


def _gumbel(builder: Builder, words: Value) -> Value:
    """-log(-log(u)) of the uniform numbers that 32-bit words make."""
    fraction = builder.sitofp(builder.lshr(words, constant(_WORDS, 9)), VECTOR)
    uniform = multiply_add(builder, fraction, constant(VECTOR, 2.0**-23), constant(VECTOR, 2.0**-24))
    exponential = builder.fneg(log(builder, uniform))
    return builder.fneg(log(builder, exponential))


@intrinsic
def gumbel_group(typingctx: Any, seed: Any, position: Any, group: Any, out: Any) -> Any:
    """Writes the noise of tokens group * GROUP to (group + 1) * GROUP - 1 to `out`, an address."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        seed, position, group, out = arguments
        first = builder.trunc(builder.mul(group, ir.Constant(group.type, LANES)), I32)
        c0 = builder.add(_splat_word(builder, first), ir.Constant(_WORDS, list(range(LANES))))
        c1, c2 = _halves(builder, position)
        k0, k1 = _halves(builder, seed)
        lanes = [_gumbel(builder, w) for w in _philox(builder, [c0, c1, c2, constant(_WORDS, 0)], [k0, k1])]
        # lanes[i][c] belongs to token 4 * c + i: interleave them.
        pair = ir.VectorType(I32, 2 * LANES)
        both = ir.Constant(pair, list(range(2 * LANES)))
        halves = [builder.shuffle_vector(lanes[i], lanes[i + 1], both) for i in (0, 2)]
        order = [lane * LANES + c for c in range(LANES) for lane in range(4)]
        mask = ir.Constant(ir.VectorType(I32, GROUP), order)
        store(builder, builder.shuffle_vector(halves[0], halves[1], mask), out)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen
