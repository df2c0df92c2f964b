"""First launch of sample on a GPU: all tokens of all rows once.

A row is cut into segments, whose results are what the later launches look at. Segments never depend on the batch, so
that a row's token does not either.
"""

import triton
import triton.language as tl

from pagewire_kernels.sample.triton_logits import change_logits, changes_logits, mask_of
from pagewire_kernels.sample.triton_noise import LOG2_E, score_of_quads
from pagewire_kernels.sample.triton_row import (
    GREEDY_BELOW,
    MIN_P,
    NUM_FLOATS,
    NUM_INTS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    cuts_count,
    is_filtered,
    rank,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

CHUNK = 2048
"""Tokens that a program treats at once: 8 for each thread, which are 16 bytes of bfloat16."""
SEGMENT = 256
"""Tokens of a segment: those that one warp loads at once as bfloat16, so that its results need no other warp's."""
NUM_WARPS = 8


@triton.jit(
    do_not_specialize=["chunks_at_once", "num_masks", "stride_masks"],
    # Wherever a batch has its masks, nothing is compiled anew.
    do_not_specialize_on_alignment=["masks_ptr", "mask_rows_ptr"],
)
def sample_chunk_kernel(
    logits_ptr,
    slots_ptr,
    floats_ptr,
    ints_ptr,
    num_tokens_ptr,
    token_ids_ptr,
    stop_token_ids_ptr,
    lists_ptr,
    masks_ptr,
    mask_rows_ptr,
    allowed_ptr,
    bad_words_ptr,
    best_ptr,
    best_logit_ptr,
    segment_max_ptr,
    group_max_ptr,
    rewritten_ptr,
    counts_ptr,
    is_rewritten_ptr,
    chunks_at_once,
    num_masks,
    stride_logits,
    stride_num_tokens,
    stride_tokens,
    stride_stops,
    stride_masks,
    RARE: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SEGMENT: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS_AT_ONCE: tl.constexpr,
):
    """Grid: (programs for each row, num_rows); one program treats chunks_at_once chunks of one row.

    Of each segment it yields the best token, as a rank: the largest logit of a greedy row, the largest score of
    others. Of filtered rows it also yields the logit of that token and the largest logit of the segment, and writes the
    logits down if they are not those of the model, as is_rewritten, [num_rows] int32, says; of rows with top_k it
    yields the maximum of each group. rewritten and counts are the same memory, which bad words, biases and penalties
    have for scratch space before.
    """
    row = tl.program_id(1).to(tl.int64)
    begin = tl.program_id(0) * chunks_at_once * CHUNK
    end = tl.minimum(begin + chunks_at_once * CHUNK, VOCAB_SIZE)
    logits_ptr += row * stride_logits
    offset = tl.arange(0, CHUNK)
    loaded = tl.load(logits_ptr + begin + offset, mask=begin + offset < end, other=float("-inf"))
    slot = tl.load(slots_ptr + row)
    temperature = tl.load(floats_ptr + slot * NUM_FLOATS + TEMPERATURE)
    min_p = tl.load(floats_ptr + slot * NUM_FLOATS + MIN_P)
    top_p = tl.load(floats_ptr + slot * NUM_FLOATS + TOP_P)
    top_k = tl.load(ints_ptr + slot * NUM_INTS + TOP_K)
    seed = tl.load(ints_ptr + slot * NUM_INTS + SEED)
    num_tokens = tl.load(num_tokens_ptr + slot * stride_num_tokens)
    mask = mask_of(mask_rows_ptr, num_masks, row)
    is_changed = changes_logits(floats_ptr, ints_ptr, slot, num_tokens, mask, RARE)
    tl.store(is_rewritten_ptr + row, is_changed.to(tl.int32))
    samples = temperature >= GREEDY_BELOW
    scale = LOG2_E / tl.where(samples, temperature, 1.0)
    filtered = is_filtered(temperature, min_p, top_k, top_p, VOCAB_SIZE)
    counted = filtered & cuts_count(top_k, VOCAB_SIZE)
    for first_token in range(begin, end, CHUNK):
        token = first_token + offset
        is_token = token < end
        x = loaded.to(tl.float32)  # [CHUNK]
        # The next chunk is on its way while this one is treated.
        loaded = tl.load(logits_ptr + token + CHUNK, mask=token + CHUNK < end, other=float("-inf"))
        is_sound = x < float("inf")
        if is_changed:
            scratch = row * VOCAB_SIZE + first_token
            num_in_chunk = tl.minimum(VOCAB_SIZE - first_token, CHUNK)
            x = change_logits(
                x, token, rewritten_ptr + scratch, counts_ptr + scratch, floats_ptr, ints_ptr, lists_ptr,
                masks_ptr, allowed_ptr, bad_words_ptr, slot, mask, token_ids_ptr + slot * stride_tokens, num_tokens,
                stop_token_ids_ptr + slot * stride_stops, num_in_chunk, first_token, stride_masks, RARE, VOCAB_SIZE,
                NUM_STOPS, CHUNK, TOKENS_AT_ONCE,
            )  # fmt: skip
        # Infinity is the best of its row whatever is filtered or drawn, and ends as no token.
        x = tl.where(is_sound, x, float("inf"))
        score = x
        if samples:
            counter = first_token // 4 + tl.arange(0, CHUNK // 4)
            score = score_of_quads(x, scale, seed, num_tokens, counter)
        score = tl.reshape(score, (CHUNK // SEGMENT, SEGMENT))
        token = tl.reshape(token, (CHUNK // SEGMENT, SEGMENT))
        best = tl.max(score, axis=1)  # [CHUNK // SEGMENT]
        best_token = tl.min(tl.where(score == best[:, None], token, VOCAB_SIZE - 1), axis=1)
        segment = first_token // SEGMENT + tl.arange(0, CHUNK // SEGMENT)
        is_segment = segment < NUM_SEGMENTS
        place = row * NUM_SEGMENTS + segment
        tl.store(best_ptr + place, rank(best, best_token), mask=is_segment)
        if filtered:
            if is_changed:
                tl.store(rewritten_ptr + row * VOCAB_SIZE + first_token + offset, x, mask=is_token)
            if counted:
                group = first_token // GROUP + tl.arange(0, CHUNK // GROUP)
                group_max = tl.max(tl.reshape(x, (CHUNK // GROUP, GROUP)), axis=1)
                tl.store(group_max_ptr + row * NUM_GROUPS + group, group_max, mask=group < NUM_GROUPS)
            logits = tl.reshape(x, (CHUNK // SEGMENT, SEGMENT))
            best_logit = tl.max(tl.where(token == best_token[:, None], logits, float("-inf")), axis=1)
            tl.store(best_logit_ptr + place, best_logit, mask=is_segment)
            tl.store(segment_max_ptr + place, tl.max(logits, axis=1), mask=is_segment)
