"""The noise of reference.py on a GPU, and the score of a token, whose largest is drawn."""

import triton
import triton.language as tl
from triton import knobs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

LOG2_E = tl.constexpr(1.4426950408889634)
_NEAR_ONE = tl.constexpr(0.0625)
_STEP = tl.constexpr(2.0**-24)
_ROUNDS = tl.constexpr(10)
_IS_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def _log2(x):
    """The device's own logarithm of normal numbers, one instruction: Triton's is a function of twenty."""
    if _IS_INTERPRETED:
        y = tl.log2(x)
    else:
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def _multiply(constant, words):
    """High and low 32 bits of constant * words."""
    product = constant.to(tl.uint64) * words.to(tl.uint64)
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox_words(seed, position, counter):
    """The four words of each counter; seed and position are int64 scalars, counter is int32."""
    key0, key1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1, c2, c3 = counter.to(tl.uint32), position.to(tl.uint32), (position >> 32).to(tl.uint32), key0 * 0
    multiplier0, multiplier1 = tl.full([], 0xD2511F53, tl.uint32), tl.full([], 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        high0, low0 = _multiply(multiplier0, c0)
        high1, low1 = _multiply(multiplier1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def noise_of_words(words):
    """Gumbel noise by log2(e), plus a constant, of 32-bit words.

    With u = ((x >> 9) + 0.5) * 2**-23 and d = 1 - u, which float32 holds exactly, the noise is -log(-log(1 - d)). The
    largest noise comes from small d, where the inner logarithm is the series of log(1 - d); elsewhere the device's own
    is accurate enough.
    """
    complement = (((words ^ 0xFFFFFFFF) >> 8) | 1).to(tl.int32).to(tl.float32)  # d * 2**24
    d = complement * _STEP
    series = 0.25 + 0.2 * d
    series = 0.3333333333 + series * d
    series = 0.5 + series * d
    series = 1.0 + series * d
    inner = tl.where(d < _NEAR_ONE, series * d * LOG2_E, -_log2(1.0 - d))
    return -_log2(inner)


@triton.jit
def noise_of_quads(seed, position, counter):
    """The noise of tokens 4 * counter to 4 * counter + 3: [..., 2, 2] float32 in their order."""
    word0, word1, word2, word3 = philox_words(seed, position, counter)
    return noise_of_words(tl.join(tl.join(word0, word2), tl.join(word1, word3)))


@triton.jit
def noise_of_tokens(seed, position, token):
    """The noise of any tokens."""
    word0, word1, word2, word3 = philox_words(seed, position, token >> 2)
    lane = token & 3
    words = tl.where(lane < 2, tl.where(lane == 0, word0, word1), tl.where(lane == 2, word2, word3))
    return noise_of_words(words)
