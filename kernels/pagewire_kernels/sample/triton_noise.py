"""The scores of tokens on a GPU: logits and the noise of reference.py. The token of the largest score is drawn.

Scores are to the base of 2, and noise lacks a constant, the same for all tokens.
"""

import triton
import triton.language as tl
from triton import knobs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

LOG2_E = tl.constexpr(1.4426950408889634)
_NEAR_ONE = tl.constexpr(0.0625)
_HALF_STEP = tl.constexpr(2.0**-24)
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
def _log2_of_negated(x):
    """_log2(-x), still one instruction."""
    if _IS_INTERPRETED:
        y = tl.log2(-x)
    else:
        y = tl.inline_asm_elementwise(
            "{.reg .f32 n; neg.f32 n, $1; lg2.approx.ftz.f32 $0, n;}", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def _multiply(constant, words):
    """High and low 32 bits of constant * words."""
    product = constant.to(tl.uint64) * words.to(tl.uint64)
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _philox(seed, position, counter):
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
def _exponential_of_words(words):
    """log2(-log2(u)) of 32-bit words, u = ((x >> 9) + 0.5) * 2**-23: minus Gumbel noise by log2(e), up to a constant.

    The largest noise comes from u close to 1. There the inner logarithm is its series in 1 - u; elsewhere the device's
    own is accurate enough. u and 1 - u are exact.
    """
    u = ((words >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - (1.0 - _HALF_STEP)
    d = 1.0 - u
    # -log2(e) * (1, 1/2, 1/3, 1/4, 1/5)
    series = -0.36067376 + -0.28853901 * d
    series = -0.48089835 + series * d
    series = -0.72134752 + series * d
    series = -1.44269504 + series * d
    return _log2_of_negated(tl.where(d < _NEAR_ONE, series * d, _log2(u)))


@triton.jit
def score_of_quads(x, scale, seed, position, counter):
    """x * scale and noise, whose largest is drawn, of the tokens 4 * counter to 4 * counter + 3, in the shape of x."""
    word0, word1, word2, word3 = _philox(seed, position, counter)
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return x * scale - tl.reshape(_exponential_of_words(words), x.shape)


@triton.jit
def score_of_tokens(x, scale, seed, position, token):
    """The same of any tokens."""
    word0, word1, word2, word3 = _philox(seed, position, token >> 2)
    lane = token & 3
    words = tl.where(lane < 2, tl.where(lane == 0, word0, word1), tl.where(lane == 2, word2, word3))
    return x * scale - _exponential_of_words(words)
