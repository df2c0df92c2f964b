"""What the sampling kernels share: where a row's parameters are, the order of logits as integers, and which logits the
row's filters treat alike."""

import triton
import triton.language as tl

from pagewire_kernels.sample import columns
from pagewire_kernels.sample.columns import float_column, int_column

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

GREEDY_BELOW = tl.constexpr(columns.GREEDY_BELOW)
NUM_FLOATS, NUM_INTS = tl.constexpr(len(columns.FLOATS)), tl.constexpr(len(columns.INTS))
TEMPERATURE, TOP_P = tl.constexpr(float_column("temperature")), tl.constexpr(float_column("top_p"))
MIN_P, TOP_K = tl.constexpr(float_column("min_p")), tl.constexpr(int_column("top_k"))
SEED = tl.constexpr(int_column("seed"))
NOTHING = tl.constexpr(-9223372036854775807)
"""A rank below that of every token."""
INFINITY_KEY, MINUS_INFINITY_KEY = tl.constexpr(2139095040), tl.constexpr(-2139095040)
"""order_key of plus and minus infinity."""
_LOW_BITS = tl.constexpr(0x7FFFFFFF)


@triton.jit
def order_key(x):
    """float32 -> int32 of the same order; zeros of both signs are equal, and no number lies between two keys."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) - (bits >> 31)


@triton.jit
def key_value(key):
    """The inverse of order_key."""
    sign = key >> 31
    return ((key + sign) ^ (sign & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def rank(x, token):
    """int64 whose largest is the token of the largest x, of equals the one with the lowest id."""
    return (order_key(x).to(tl.int64) << 32) | (-token + _LOW_BITS).to(tl.int64)


@triton.jit
def token_of(rank, VOCAB_SIZE: tl.constexpr):
    """The token of a rank; some token if the rank is NOTHING."""
    return tl.minimum(-(rank & _LOW_BITS) + _LOW_BITS, VOCAB_SIZE - 1)


@triton.jit
def token_or_none(rank, VOCAB_SIZE: tl.constexpr):
    """The token of a rank; -1 if its value is infinite: the row has no distribution."""
    key = rank >> 32
    is_sound = (key > MINUS_INFINITY_KEY) & (key < INFINITY_KEY)
    return tl.where(is_sound, token_of(rank, VOCAB_SIZE), -1)


@triton.jit
def equal_top(x, temperature):
    """The largest of the logits that are the same as x once divided by the temperature: kept or dropped together."""
    key = order_key(x)
    near = key_value(key + tl.arange(0, 8))
    # A temperature above 1 makes one float of at most three.
    same = tl.div_rn(near, tl.zeros_like(near) + temperature) == tl.div_rn(x, temperature)
    return key_value(key + tl.sum(same.to(tl.int32), axis=0) - 1)


@triton.jit
def below_min_p(top, min_p, temperature):
    """The largest logit that min_p drops; minus infinity if it drops none."""
    floor = tl.div_rn(top, temperature) + tl.log(min_p)
    near = order_key(floor * temperature) + tl.arange(0, 16) - 8
    value = key_value(near)
    is_below = tl.div_rn(value, tl.zeros_like(value) + temperature) < floor
    least = tl.max(tl.where(is_below, near, MINUS_INFINITY_KEY), axis=0)
    return tl.where(min_p > 0.0, key_value(least), float("-inf"))


@triton.jit
def cuts_count(top_k, VOCAB_SIZE: tl.constexpr):
    """top_k may drop tokens."""
    return (top_k > 0) & (top_k < VOCAB_SIZE)


@triton.jit
def is_filtered(temperature, min_p, top_k, top_p, VOCAB_SIZE: tl.constexpr):
    """The row draws from some of its tokens only."""
    cuts = (min_p > 0.0) | cuts_count(top_k, VOCAB_SIZE) | (top_p < 1.0)
    return (temperature >= GREEDY_BELOW) & cuts
