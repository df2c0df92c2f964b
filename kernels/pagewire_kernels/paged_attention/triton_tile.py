"""Shared by the decode and the prefill kernel: addresses of a tile of the cache, scores, a step of online softmax.

Scores are kept in powers of two: log2(e) is folded into the factors the host passes (inputs.py), exp2 replaces exp.
"""

import triton
import triton.language as tl

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
"""Initial value of a running maximum. It is finite, so that -inf - maximum is never NaN."""


@triton.jit
def look_up(table_ptr, start, end, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Blocks of keys start .. start + TILE - 1, those from `end` on excepted; start is a multiple of TILE.

    When tiles divide blocks, a tile lies within one: a scalar. Otherwise [TILE], one for each key.

    To be carried from one round of a loop to the next: a look-up in the round that uses it makes Triton's pipeliner
    divide the stages between look-ups and keys, and fewer keys are in flight.
    """
    if BLOCK_SIZE % TILE == 0:
        blocks = tl.load(table_ptr + start // BLOCK_SIZE, mask=start < end, other=0)
    else:
        keys = start + tl.arange(0, TILE)
        blocks = tl.load(table_ptr + keys // BLOCK_SIZE, mask=keys < end, other=0)
    return blocks


@triton.jit
def tile_offsets(
    blocks,
    start,
    kv_head,
    dims,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Element offsets [TILE, BLOCK_D] of keys start .. start + TILE - 1 into a cache, whose blocks look_up found."""
    rows = tl.arange(0, TILE)
    blocks = blocks.to(tl.int64)
    if BLOCK_SIZE % TILE == 0:
        first = ((blocks * BLOCK_SIZE + start % BLOCK_SIZE) * NUM_KV_HEADS + kv_head) * HEAD_DIM
        offsets = first + (rows[:, None] * (NUM_KV_HEADS * HEAD_DIM) + dims[None, :])
    else:
        slots = (blocks * BLOCK_SIZE + (start + rows) % BLOCK_SIZE) * NUM_KV_HEADS + kv_head
        offsets = slots[:, None] * HEAD_DIM + dims[None, :]
    return offsets


@triton.jit
def shape_scores(
    products,
    distance,
    slopes,
    score_scale,
    softcap_log2,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
):
    """Turns products q k [M, N] into scores that, times score_factor(), are the exponents of two.

    distance [M, N] (or what broadcasts to it): how far the key lies behind the query. slopes [M], in powers of two.
    """
    scores = products
    if HAS_SOFTCAP:
        # softcap * tanh(x) = softcap - 2 softcap / (exp(2x) + 1); score_scale holds 2x's factor. Exact at +-inf.
        scores = softcap_log2 - 2.0 * softcap_log2 / (tl.exp2(scores * score_scale) + 1.0)
    elif HAS_ALIBI:
        scores = scores * score_scale
    if HAS_ALIBI:
        scores -= slopes[:, None] * distance
    return scores


@triton.jit
def score_factor(score_scale, HAS_SOFTCAP: tl.constexpr, HAS_ALIBI: tl.constexpr):
    """Returns the remaining factor of scores: the multiply-add that subtracts the maximum scales plain scores."""
    factor = score_scale
    if HAS_SOFTCAP or HAS_ALIBI:
        factor = 1.0
    return factor


@triton.jit
def softmax_step(scores, factor, maximum):
    """Returns the new maximum [M], weights [M, N] and the factor for earlier sums [M]. Keys at -inf get weight 0."""
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * factor)
    weights = tl.exp2(scores * factor - new_maximum[:, None])
    return new_maximum, weights, tl.exp2(maximum - new_maximum)


@triton.jit
def add_sinks(sinks_ptr, heads, row_mask, maximum, total):
    """Returns the divisors of weighted sums: totals [M] plus those of the sinks, which are scores without values."""
    if sinks_ptr is not None:
        sinks = tl.load(sinks_ptr + heads, mask=row_mask, other=0.0).to(tl.float32) * LOG2_E
        # A sink far above all scores gives infinity here and the correct quotient, 0.
        total += tl.exp2(sinks - maximum)
    # A void row saw no key; its output is 0 / 1.
    return tl.where(total > 0, total, 1.0)
