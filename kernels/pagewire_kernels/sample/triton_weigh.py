"""Second and third launch of sample on a GPU: what the tokens above a few logits of a row with top_p and without top_k
weigh.

A token is kept if the tokens of larger logits have less than top_p of the mass. So the draw needs no threshold: the
token of the largest score is the answer if it is kept. If not, no token of its logit or a smaller one is kept, and the
next to try is the token of the largest score among those above. The second launch finds the logits of a few of that
chain, as far as the segments' best tokens show it, the third weighs the tokens above each, and the fourth
(triton_choose.py) takes the first that is kept, and goes on weighing in the few rows where that leaves a doubt.

Masses are integers, so that their sums do not depend on any order.
"""

import triton
import triton.language as tl

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
TILE = 2048
"""Tokens that a program looks at together."""
NUM_WARPS = 8
BOUNDS_WARPS = 4
NUM_BOUNDS = 4
"""Logits above which tokens are weighed at once: the first is the filters' before top_p."""
VECTOR = tl.constexpr(8)
"""Tokens whose masses a thread adds up as floats before they become an integer."""
MASS_OF_TOP = tl.constexpr(float(1 << 40))
"""The integer mass of the most probable token: 2**20 such tokens fit, and 2**-41 of it is nothing."""


@triton.jit
def load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, mask):
    """A row's logits after all stages that change them, float32."""
    if is_rewritten:
        x = tl.load(rewritten_ptr + token, mask=mask, other=float("-inf"))
    else:
        x = tl.load(logits_ptr + token, mask=mask, other=float("-inf")).to(tl.float32)
    return x


@triton.jit
def add_masses(sums, x, masses, bound):
    """sums [N] int64 and the masses of the tokens above a bound; x and masses are [N, VECTOR]."""
    return sums + (tl.sum(tl.where(x > bound, masses, 0.0), axis=1) * MASS_OF_TOP).to(tl.int64)


@triton.jit
def share_of(mass, top_p):
    """top_p of a mass, at least 1: the most probable token is always kept."""
    return tl.maximum((mass.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def _next_of_chain(best, best_logit, bound, top):
    """The logit of the token of the largest score among the segments' best above bound; the largest if none is."""
    chosen = tl.max(tl.where(best_logit > bound, best, NOTHING), axis=0)
    logit = tl.max(tl.where((best == chosen) & (best_logit > bound), best_logit, float("-inf")), axis=0)
    return tl.where(chosen == NOTHING, top, logit)


@triton.jit
def _is_weighed(temperature, top_k, top_p, VOCAB_SIZE: tl.constexpr):
    return (temperature >= GREEDY_BELOW) & (top_p < 1.0) & (cuts_count(top_k, VOCAB_SIZE) == 0)


@triton.jit
def sample_bounds_kernel(
    slots_ptr,
    floats_ptr,
    ints_ptr,
    best_ptr,
    best_logit_ptr,
    segment_max_ptr,
    bounds_ptr,
    tops_ptr,
    VOCAB_SIZE: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    SEGMENT_BLOCK: tl.constexpr,
):
    """Grid: (num_rows,); one program finds the bounds and the largest logit of a row with top_p and without top_k.

    bounds: [num_rows, NUM_BOUNDS] float32: the first is what min_p drops, the others are of the chain.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    temperature = tl.load(floats_ptr + slot * NUM_FLOATS + TEMPERATURE)
    top_p = tl.load(floats_ptr + slot * NUM_FLOATS + TOP_P)
    top_k = tl.load(ints_ptr + slot * NUM_INTS + TOP_K)
    if _is_weighed(temperature, top_k, top_p, VOCAB_SIZE):
        segment = tl.arange(0, SEGMENT_BLOCK)
        is_segment = segment < NUM_SEGMENTS
        place = row * NUM_SEGMENTS + segment
        best = tl.load(best_ptr + place, mask=is_segment, other=NOTHING)
        best_logit = tl.load(best_logit_ptr + place, mask=is_segment, other=float("-inf"))
        top = tl.max(tl.load(segment_max_ptr + place, mask=is_segment, other=float("-inf")), axis=0)
        tl.store(tops_ptr + row, top)
        if (top < float("inf")) & (top > float("-inf")):
            bound = below_min_p(top, tl.load(floats_ptr + slot * NUM_FLOATS + MIN_P), temperature)
            bounds_ptr += row * 4
            tl.store(bounds_ptr, bound)
            # Each token of the chain leaves about 1 / e of the mass above the one before it. The first ones are not
            # kept, in all likelihood, if top_p is small.
            num_skipped = (-tl.log(top_p)).to(tl.int32) - 1
            for _ in range(num_skipped):
                bound = _next_of_chain(best, best_logit, bound, top)
            for index in range(1, 4):
                bound = equal_top(_next_of_chain(best, best_logit, bound, top), temperature)
                tl.store(bounds_ptr + index, bound)


@triton.jit
def sample_weigh_kernel(
    logits_ptr,
    slots_ptr,
    floats_ptr,
    ints_ptr,
    rewritten_ptr,
    is_rewritten_ptr,
    bounds_ptr,
    tops_ptr,
    masses_ptr,
    stride_logits,
    VOCAB_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid: (SPLITS, num_rows); one program weighs a share of one row.

    masses: [num_rows, SPLITS, NUM_BOUNDS] int64: the tokens of the share above each bound.
    """
    split = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    temperature = tl.load(floats_ptr + slot * NUM_FLOATS + TEMPERATURE)
    top_p = tl.load(floats_ptr + slot * NUM_FLOATS + TOP_P)
    top_k = tl.load(ints_ptr + slot * NUM_INTS + TOP_K)
    if _is_weighed(temperature, top_k, top_p, VOCAB_SIZE):
        top = tl.load(tops_ptr + row)
        if (top < float("inf")) & (top > float("-inf")):
            is_rewritten = tl.load(is_rewritten_ptr + row) != 0
            scale = LOG2_E / temperature
            bounds_ptr += row * 4
            bound0, bound1 = tl.load(bounds_ptr), tl.load(bounds_ptr + 1)
            bound2, bound3 = tl.load(bounds_ptr + 2), tl.load(bounds_ptr + 3)
            width: tl.constexpr = ((VOCAB_SIZE + SPLITS * TILE - 1) // (SPLITS * TILE)) * TILE
            end = tl.minimum((split + 1) * width, VOCAB_SIZE)
            logits_ptr += row * stride_logits
            rewritten_ptr += row * VOCAB_SIZE
            offset = tl.arange(0, TILE // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
            sums0 = tl.zeros((TILE // VECTOR,), tl.int64)
            sums1, sums2, sums3 = sums0, sums0, sums0
            token = split * width + offset
            loaded = load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, token < end)
            for _ in range(split * width, end, TILE):
                x = loaded
                token += TILE
                # The next tile is on its way while this one is weighed.
                loaded = load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, token < end)
                masses = tl.exp2((x - top) * scale)  # [TILE // VECTOR, VECTOR]
                sums0 = add_masses(sums0, x, masses, bound0)
                sums1 = add_masses(sums1, x, masses, bound1)
                sums2 = add_masses(sums2, x, masses, bound2)
                sums3 = add_masses(sums3, x, masses, bound3)
            masses_ptr += (row * SPLITS + split) * 4
            tl.store(masses_ptr, tl.sum(sums0, axis=0))
            tl.store(masses_ptr + 1, tl.sum(sums1, axis=0))
            tl.store(masses_ptr + 2, tl.sum(sums2, axis=0))
            tl.store(masses_ptr + 3, tl.sum(sums3, axis=0))
