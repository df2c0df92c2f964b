"""Last launch of sample on a GPU: one program chooses one row's token.

Of rows without filters it takes the best token of all segments. Of filtered rows it takes the token of the largest
score above a logit that bounds what is kept, and raises the bound until that token is kept itself; triton_weigh.py
says why this is a draw from what is kept. min_p is such a bound, top_k finds one (triton_top_k.py), and top_p weighs
the tokens above the one in question.
"""

import triton
import triton.language as tl

from pagewire_kernels.sample.triton_noise import LOG2_E, score_of_quads
from pagewire_kernels.sample.triton_row import (
    MIN_P,
    NOTHING,
    NUM_FLOATS,
    NUM_INTS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    below_min_p,
    cuts_count,
    equal_top,
    is_filtered,
    rank,
    token_of,
    token_or_none,
)
from pagewire_kernels.sample.triton_top_k import below_top_k, draw_from_few
from pagewire_kernels.sample.triton_weigh import VECTOR, add_masses, load_logits, share_of

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

NUM_WARPS = 8
ROW_TILE = 2048
"""Tokens that a program looks at together when it weighs or counts a whole row: as many as leave room for two programs
on a multiprocessor."""


@triton.jit
def _list_segments(listed, list_ptr, SEGMENT_BLOCK: tl.constexpr):
    """Writes down the segments that are listed; returns how many they are."""
    # The list before may still be read.
    tl.debug_barrier()
    tl.store(list_ptr + tl.cumsum(listed.to(tl.int32), axis=0) - 1, tl.arange(0, SEGMENT_BLOCK), mask=listed)
    # Other threads read what this one has written.
    tl.debug_barrier()
    return tl.sum(listed.to(tl.int32), axis=0)


@triton.jit
def _tokens_of(
    list_ptr, first, num_listed, VOCAB_SIZE: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS_AT_ONCE: tl.constexpr
):
    """The segments from `first` in the list on, [SEGMENTS_AT_ONCE], and their tokens, [SEGMENTS_AT_ONCE, SEGMENT]."""
    place = first + tl.arange(0, SEGMENTS_AT_ONCE)
    segment = tl.load(list_ptr + place, mask=place < num_listed, other=VOCAB_SIZE)
    return segment, segment[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]


@triton.jit
def _best_above(
    best_ptr,
    best_logit_ptr,
    segment_max_ptr,
    list_ptr,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    low,
    scale,
    seed,
    position,
    VOCAB_SIZE: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENT_BLOCK: tl.constexpr,
    SEGMENTS_AT_ONCE: tl.constexpr,
):
    """The rank of the token of the largest score among those whose logit exceeds low.

    A segment's best token is its best above low if it is above. Otherwise its tokens are looked at, unless none is
    above, or another segment's token beats them all.
    """
    # Loaded anew each time, as the rest has no registers to spare.
    index = tl.arange(0, SEGMENT_BLOCK)
    is_segment = index < NUM_SEGMENTS
    best = tl.load(best_ptr + index, mask=is_segment, other=NOTHING)
    is_above = tl.load(best_logit_ptr + index, mask=is_segment, other=float("-inf")) > low
    segment_max = tl.load(segment_max_ptr + index, mask=is_segment, other=float("-inf"))
    chosen = tl.max(tl.where(is_above, best, NOTHING), axis=0)
    listed = (segment_max > low) & (is_above == 0) & (best > chosen)
    if tl.max(listed.to(tl.int32), axis=0) > 0:
        num_listed = _list_segments(listed, list_ptr, SEGMENT_BLOCK)
        for first in range(0, num_listed, SEGMENTS_AT_ONCE):
            segment, token = _tokens_of(list_ptr, first, num_listed, VOCAB_SIZE, SEGMENT, SEGMENTS_AT_ONCE)
            x = load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, token < VOCAB_SIZE)
            counter = segment[:, None] * (SEGMENT // 4) + tl.arange(0, SEGMENT // 4)[None, :]
            score = tl.where(x > low, score_of_quads(x, scale, seed, position, counter), float("-inf"))
            best_score = tl.max(tl.max(score, axis=1), axis=0)
            is_best = (score == best_score) & (x > low)
            best_token = tl.min(tl.min(tl.where(is_best, token, VOCAB_SIZE), axis=1), axis=0)
            chosen = tl.maximum(chosen, tl.where(best_token < VOCAB_SIZE, rank(best_score, best_token), NOTHING))
    return chosen


@triton.jit
def _weigh(
    segment_max_ptr,
    list_ptr,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    top,
    scale,
    bound0,
    bound1,
    bound2,
    bound3,
    VOCAB_SIZE: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENT_BLOCK: tl.constexpr,
    SEGMENTS_AT_ONCE: tl.constexpr,
):
    """The masses of the tokens above each bound, four int64; bound0 is the least."""
    index = tl.arange(0, SEGMENT_BLOCK)
    segment_max = tl.load(segment_max_ptr + index, mask=index < NUM_SEGMENTS, other=float("-inf"))
    num_listed = _list_segments(segment_max > bound0, list_ptr, SEGMENT_BLOCK)
    vectors: tl.constexpr = SEGMENTS_AT_ONCE * SEGMENT // VECTOR
    sums0 = tl.zeros((vectors,), tl.int64)
    sums1, sums2, sums3 = sums0, sums0, sums0
    for first in range(0, num_listed, SEGMENTS_AT_ONCE):
        _, token = _tokens_of(list_ptr, first, num_listed, VOCAB_SIZE, SEGMENT, SEGMENTS_AT_ONCE)
        token = tl.reshape(token, (vectors, VECTOR))
        x = load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, token < VOCAB_SIZE)
        masses = tl.exp2((x - top) * scale)
        sums0 = add_masses(sums0, x, masses, bound0)
        sums1 = add_masses(sums1, x, masses, bound1)
        sums2 = add_masses(sums2, x, masses, bound2)
        sums3 = add_masses(sums3, x, masses, bound3)
    return tl.sum(sums0, axis=0), tl.sum(sums1, axis=0), tl.sum(sums2, axis=0), tl.sum(sums3, axis=0)


@triton.jit
def _mass_above(masses_ptr, bound: tl.constexpr, SPLITS: tl.constexpr):
    return tl.sum(tl.load(masses_ptr + tl.arange(0, SPLITS) * 4 + bound), axis=0)


@triton.jit
def _narrow(low, high, bound, place, mass, share):
    """low and high after the tokens above bound have been weighed; bound is the largest that equals place."""
    is_kept = mass < share
    return tl.where(is_kept, low, tl.maximum(low, bound)), tl.where(is_kept, tl.minimum(high, place), high)


@triton.jit
def sample_choose_kernel(
    logits_ptr,
    slots_ptr,
    floats_ptr,
    ints_ptr,
    num_tokens_ptr,
    best_ptr,
    best_logit_ptr,
    segment_max_ptr,
    group_max_ptr,
    rewritten_ptr,
    is_rewritten_ptr,
    bounds_ptr,
    masses_ptr,
    list_ptr,
    candidate_logits_ptr,
    candidate_tokens_ptr,
    sampled_ptr,
    stride_logits,
    stride_num_tokens,
    VOCAB_SIZE: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    SEGMENT_BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS_AT_ONCE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
    GATHERED: tl.constexpr,
    CANDIDATES: tl.constexpr,
    SPLITS: tl.constexpr,
    ROW_TILE: tl.constexpr,
):
    """Grid: (num_rows,); one program writes one row's token."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    temperature = tl.load(floats_ptr + slot * NUM_FLOATS + TEMPERATURE)
    min_p = tl.load(floats_ptr + slot * NUM_FLOATS + MIN_P)
    top_p = tl.load(floats_ptr + slot * NUM_FLOATS + TOP_P)
    top_k = tl.load(ints_ptr + slot * NUM_INTS + TOP_K)
    segment = tl.arange(0, SEGMENT_BLOCK)
    is_segment = segment < NUM_SEGMENTS
    best_ptr += row * NUM_SEGMENTS
    chosen = tl.max(tl.load(best_ptr + segment, mask=is_segment, other=NOTHING), axis=0)
    if is_filtered(temperature, min_p, top_k, top_p, VOCAB_SIZE):
        best_logit_ptr += row * NUM_SEGMENTS
        segment_max_ptr += row * NUM_SEGMENTS
        top = tl.max(tl.load(segment_max_ptr + segment, mask=is_segment, other=float("-inf")), axis=0)
        if (top < float("inf")) & (top > float("-inf")):
            seed = tl.load(ints_ptr + slot * NUM_INTS + SEED)
            num_tokens = tl.load(num_tokens_ptr + slot * stride_num_tokens)
            is_rewritten = tl.load(is_rewritten_ptr + row) != 0
            scale = LOG2_E / temperature
            logits_ptr += row * stride_logits
            rewritten_ptr += row * VOCAB_SIZE
            list_ptr += row * (NUM_SEGMENTS + LISTED)
            # Logits up to low are dropped, those from high on kept; those between are not decided on.
            low = below_min_p(top, min_p, temperature)
            high = tl.full([], float("-inf"), tl.float32)
            share = tl.full([], 1, tl.int64)
            is_chosen = False
            if cuts_count(top_k, VOCAB_SIZE):
                candidates = row * (GATHERED + CANDIDATES)
                drawn = draw_from_few(
                    group_max_ptr + row * NUM_GROUPS, list_ptr + NUM_SEGMENTS, candidate_logits_ptr + candidates,
                    candidate_tokens_ptr + candidates, logits_ptr, rewritten_ptr, is_rewritten, low, top, temperature,
                    scale, top_k.to(tl.int32), top_p, seed, num_tokens, VOCAB_SIZE, NUM_GROUPS, GROUP_BLOCK, GROUP,
                    LISTED, GATHERED, CANDIDATES,
                )  # fmt: skip
                is_chosen = drawn != NOTHING
                if is_chosen:
                    chosen = drawn
                else:
                    low = below_top_k(
                        logits_ptr, rewritten_ptr, is_rewritten, low, top, temperature, scale, top_k.to(tl.int32),
                        VOCAB_SIZE, ROW_TILE,
                    )  # fmt: skip
                    if top_p < 1.0:
                        mass, _, _, _ = _weigh(
                            segment_max_ptr, list_ptr, logits_ptr, rewritten_ptr, is_rewritten, top, scale, low, top,
                            top, top, VOCAB_SIZE, NUM_SEGMENTS, SEGMENT, SEGMENT_BLOCK, SEGMENTS_AT_ONCE,
                        )  # fmt: skip
                        share = share_of(mass, top_p)
                        high = top
            elif top_p < 1.0:
                masses_ptr += row * SPLITS * 4
                bounds_ptr += row * 4
                share = share_of(_mass_above(masses_ptr, 0, SPLITS), top_p)
                high = top
                for index in tl.static_range(1, 4):
                    bound = tl.load(bounds_ptr + index)
                    low, high = _narrow(low, high, bound, bound, _mass_above(masses_ptr, index, SPLITS), share)
            while is_chosen == 0:
                chosen = _best_above(
                    best_ptr, best_logit_ptr, segment_max_ptr, list_ptr, logits_ptr, rewritten_ptr, is_rewritten, low,
                    scale, seed, num_tokens, VOCAB_SIZE, NUM_SEGMENTS, SEGMENT, SEGMENT_BLOCK, SEGMENTS_AT_ONCE,
                )  # fmt: skip
                token = token_of(chosen, VOCAB_SIZE)
                place0 = load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, token >= 0)
                bound0 = equal_top(place0, temperature)
                is_chosen = bound0 >= high
                if is_chosen == 0:
                    quarter = 0.25 * (high - bound0)
                    place1, place2, place3 = bound0 + quarter, bound0 + 2.0 * quarter, high - quarter
                    bound1, bound2 = equal_top(place1, temperature), equal_top(place2, temperature)
                    bound3 = equal_top(place3, temperature)
                    mass0, mass1, mass2, mass3 = _weigh(
                        segment_max_ptr, list_ptr, logits_ptr, rewritten_ptr, is_rewritten, top, scale, bound0, bound1,
                        bound2, bound3, VOCAB_SIZE, NUM_SEGMENTS, SEGMENT, SEGMENT_BLOCK, SEGMENTS_AT_ONCE,
                    )  # fmt: skip
                    is_chosen = mass0 < share
                    low, high = _narrow(low, high, bound0, place0, mass0, share)
                    low, high = _narrow(low, high, bound1, place1, mass1, share)
                    low, high = _narrow(low, high, bound2, place2, mass2, share)
                    low, high = _narrow(low, high, bound3, place3, mass3, share)
        else:
            # Poisoned, or without a token above minus infinity.
            chosen = rank(top, tl.full([], 0, tl.int32))
    tl.store(sampled_ptr + row, token_or_none(chosen, VOCAB_SIZE))
