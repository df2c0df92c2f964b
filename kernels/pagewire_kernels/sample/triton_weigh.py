"""Second launch of sample on a GPU: what the tokens above a few logits of a row with top_p and without top_k weigh.

A token is kept if the tokens of larger logits have less than top_p of the mass. So the draw needs no threshold: the
token of the largest score is the answer if it is kept. If not, no token of its logit or a smaller one is kept, and the
next to try is the token of the largest score among those above. This launch weighs the first few of that chain, the
third (triton_choose.py) takes the first that is kept, and goes on in the few rows where none of them is.

Masses are integers, so that their sums do not depend on any order.
"""

import triton
import triton.language as tl

from pagewire_kernels.sample.triton_logits import changes_logits
from pagewire_kernels.sample.triton_noise import LOG2_E
from pagewire_kernels.sample.triton_row import (
    GREEDY_BELOW,
    MIN_P,
    NOTHING,
    NUM_FLOATS,
    NUM_INTS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    below_min_p,
    cuts_count,
    equal_top,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

SPLITS = 8
"""Programs of one row. Their sums are integers, so that no result depends on it."""
TILE = 4096
"""Tokens that a program looks at together."""
NUM_WARPS = 8
NUM_BOUNDS = 4
"""Logits above which tokens are weighed at once: the first is the filters' before top_p."""
_VECTOR = tl.constexpr(8)
"""Tokens whose masses a thread adds up as floats before they become an integer."""
MASS_OF_TOP = tl.constexpr(float(1 << 40))
"""The integer mass of the most probable token: 2**20 such tokens fit, and 2**-41 of it is nothing."""


@triton.jit
def _add_masses(sums, x, masses, bound):
    return sums + (tl.sum(tl.where(x > bound, masses, 0.0), axis=1) * MASS_OF_TOP).to(tl.int64)


@triton.jit
def weigh(
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    begin,
    end,
    top,
    scale,
    bound0,
    bound1,
    bound2,
    bound3,
    TILE: tl.constexpr,
):
    """The masses of the tokens from begin to end whose logit exceeds each bound: four int64."""
    sums0 = tl.zeros((TILE // _VECTOR,), tl.int64)
    sums1, sums2, sums3 = sums0, sums0, sums0
    offset = tl.arange(0, TILE // _VECTOR)[:, None] * _VECTOR + tl.arange(0, _VECTOR)[None, :]
    for first in range(begin, end, TILE):
        token = first + offset
        if is_rewritten:
            x = tl.load(rewritten_ptr + token, mask=token < end, other=float("-inf"))
        else:
            x = tl.load(logits_ptr + token, mask=token < end, other=float("-inf")).to(tl.float32)
        masses = tl.exp2((x - top) * scale)  # [TILE // _VECTOR, _VECTOR]
        sums0 = _add_masses(sums0, x, masses, bound0)
        sums1 = _add_masses(sums1, x, masses, bound1)
        sums2 = _add_masses(sums2, x, masses, bound2)
        sums3 = _add_masses(sums3, x, masses, bound3)
    return tl.sum(sums0, axis=0), tl.sum(sums1, axis=0), tl.sum(sums2, axis=0), tl.sum(sums3, axis=0)


@triton.jit
def count(
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    bound0,
    bound1,
    bound2,
    bound3,
    VOCAB_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many tokens have a logit that exceeds each bound: four int32."""
    counts0 = tl.zeros((TILE // _VECTOR,), tl.int32)
    counts1, counts2, counts3 = counts0, counts0, counts0
    offset = tl.arange(0, TILE // _VECTOR)[:, None] * _VECTOR + tl.arange(0, _VECTOR)[None, :]
    for first in range(0, VOCAB_SIZE, TILE):
        token = first + offset
        if is_rewritten:
            x = tl.load(rewritten_ptr + token, mask=token < VOCAB_SIZE, other=float("-inf"))
        else:
            x = tl.load(logits_ptr + token, mask=token < VOCAB_SIZE, other=float("-inf")).to(tl.float32)
        counts0 += tl.sum((x > bound0).to(tl.int32), axis=1)
        counts1 += tl.sum((x > bound1).to(tl.int32), axis=1)
        counts2 += tl.sum((x > bound2).to(tl.int32), axis=1)
        counts3 += tl.sum((x > bound3).to(tl.int32), axis=1)
    return tl.sum(counts0, axis=0), tl.sum(counts1, axis=0), tl.sum(counts2, axis=0), tl.sum(counts3, axis=0)


@triton.jit
def share_of(mass, top_p):
    """top_p of a mass, at least 1: the most probable token is always kept."""
    return tl.maximum((mass.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def _next_of_chain(best, best_logit, bound, top, temperature):
    """The logit of the token of the largest score among the segments' best above bound; the largest if none is."""
    chosen = tl.max(tl.where(best_logit > bound, best, NOTHING), axis=0)
    logit = tl.max(tl.where((best == chosen) & (best_logit > bound), best_logit, float("-inf")), axis=0)
    return equal_top(tl.where(chosen == NOTHING, top, logit), temperature)


@triton.jit
def sample_weigh_kernel(
    logits_ptr,
    slots_ptr,
    floats_ptr,
    ints_ptr,
    num_tokens_ptr,
    best_ptr,
    best_logit_ptr,
    segment_max_ptr,
    rewritten_ptr,
    bounds_ptr,
    masses_ptr,
    stride_logits,
    stride_num_tokens,
    STAGES: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    SEGMENT_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid: (SPLITS, num_rows); one program weighs a share of one row.

    bounds: [num_rows, NUM_BOUNDS] float32; masses: [num_rows, SPLITS, NUM_BOUNDS] int64.
    """
    split = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    temperature = tl.load(floats_ptr + slot * NUM_FLOATS + TEMPERATURE)
    top_p = tl.load(floats_ptr + slot * NUM_FLOATS + TOP_P)
    top_k = tl.load(ints_ptr + slot * NUM_INTS + TOP_K)
    if (temperature >= GREEDY_BELOW) & (top_p < 1.0) & (cuts_count(top_k, VOCAB_SIZE) == 0):
        segment = tl.arange(0, SEGMENT_BLOCK)
        is_segment = segment < NUM_SEGMENTS
        place = row * NUM_SEGMENTS + segment
        best = tl.load(best_ptr + place, mask=is_segment, other=NOTHING)
        best_logit = tl.load(best_logit_ptr + place, mask=is_segment, other=float("-inf"))
        top = tl.max(tl.load(segment_max_ptr + place, mask=is_segment, other=float("-inf")), axis=0)
        if (top < float("inf")) & (top > float("-inf")):
            min_p = tl.load(floats_ptr + slot * NUM_FLOATS + MIN_P)
            num_tokens = tl.load(num_tokens_ptr + slot * stride_num_tokens)
            is_rewritten = changes_logits(floats_ptr, ints_ptr, slot, num_tokens, STAGES)
            bound0 = below_min_p(top, min_p, temperature)
            bound1 = _next_of_chain(best, best_logit, bound0, top, temperature)
            bound2 = _next_of_chain(best, best_logit, bound1, top, temperature)
            bound3 = _next_of_chain(best, best_logit, bound2, top, temperature)
            width: tl.constexpr = ((VOCAB_SIZE + SPLITS * TILE - 1) // (SPLITS * TILE)) * TILE
            begin = split * width
            mass0, mass1, mass2, mass3 = weigh(
                logits_ptr + row * stride_logits, rewritten_ptr + row * VOCAB_SIZE, is_rewritten, begin,
                tl.minimum(begin + width, VOCAB_SIZE), top, LOG2_E / temperature, bound0, bound1, bound2, bound3, TILE,
            )  # fmt: skip
            masses_ptr += (row * SPLITS + split) * 4
            tl.store(masses_ptr, mass0)
            tl.store(masses_ptr + 1, mass1)
            tl.store(masses_ptr + 2, mass2)
            tl.store(masses_ptr + 3, mass3)
            if split == 0:
                tl.store(bounds_ptr + row * 4, bound0)
                tl.store(bounds_ptr + row * 4 + 1, bound1)
                tl.store(bounds_ptr + row * 4 + 2, bound2)
                tl.store(bounds_ptr + row * 4 + 3, bound3)
