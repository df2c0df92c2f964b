"""First launch of sample on a GPU: all chunks of all rows side by side, so that one row fills many multiprocessors.

A chunk's size never depends on the batch, so that a row's sums do not either.
"""

import triton
import triton.language as tl

from pagewire_kernels.sample.triton_logits import change_logits, changes_logits
from pagewire_kernels.sample.triton_row import (
    GREEDY_BELOW,
    MIN_P,
    NOTHING,
    NUM_FLOATS,
    NUM_INTS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    gumbel_noise,
    is_filtered,
    rank,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

CHUNK = 2048
"""Tokens of a chunk: 63 programs for a row of 128,256, 16 elements for each thread."""
GROUP = 32
"""Tokens whose maximum the second launch looks at before it looks at them: 64 bytes of bfloat16."""
NUM_WARPS = 4


@triton.jit
def sample_chunk_kernel(
    logits_ptr,
    slots_ptr,
    floats_ptr,
    ints_ptr,
    num_tokens_ptr,
    token_ids_ptr,
    stop_token_ids_ptr,
    lists_ptr,
    best_ptr,
    group_max_ptr,
    chunk_max_ptr,
    chunk_mass_ptr,
    rewritten_ptr,
    counts_ptr,
    stride_logits,
    stride_num_tokens,
    stride_tokens,
    stride_stops,
    STAGES: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS_AT_ONCE: tl.constexpr,
):
    """Grid: (num_chunks, num_rows); one program treats CHUNK logits of one row.

    Of greedy rows and of rows that draw from all tokens it yields the best token, as a rank. Of filtered rows it yields
    the maximum of each group, the chunk's maximum and its sum of exp(x - maximum), and writes the logits down if they
    are not those of the model divided by the temperature. rewritten and counts are the same memory, which biases and
    penalties have for scratch space before.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    num_chunks: tl.constexpr = (VOCAB_SIZE + CHUNK - 1) // CHUNK
    first_token = chunk * CHUNK
    token = first_token + tl.arange(0, CHUNK)
    is_token = token < VOCAB_SIZE
    x = tl.load(logits_ptr + row * stride_logits + token, mask=is_token, other=float("-inf"))
    x = x.to(tl.float32)  # [CHUNK]
    is_poison = (x != x) | (x == float("inf"))
    slot = tl.load(slots_ptr + row)
    temperature = tl.load(floats_ptr + slot * NUM_FLOATS + TEMPERATURE)
    num_tokens = tl.load(num_tokens_ptr + slot * stride_num_tokens)
    is_changed = changes_logits(floats_ptr, ints_ptr, slot, num_tokens, STAGES)
    if is_changed:
        scratch = row * VOCAB_SIZE + first_token
        num_in_chunk = tl.minimum(VOCAB_SIZE - first_token, CHUNK)
        x = change_logits(
            x, token, rewritten_ptr + scratch, counts_ptr + scratch, floats_ptr, ints_ptr, lists_ptr, slot,
            token_ids_ptr + slot * stride_tokens, num_tokens, stop_token_ids_ptr + slot * stride_stops, num_in_chunk,
            first_token, STAGES, NUM_STOPS, CHUNK, TOKENS_AT_ONCE,
        )  # fmt: skip
    samples = temperature >= GREEDY_BELOW
    if samples:
        x = tl.div_rn(x, tl.zeros_like(x) + temperature)
    # Infinity is the best of its row whatever is filtered or drawn, and ends as no token.
    x = tl.where(is_poison, float("inf"), x)
    # Not loaded earlier: the stages above have no registers to spare.
    min_p = tl.load(floats_ptr + slot * NUM_FLOATS + MIN_P)
    top_p = tl.load(floats_ptr + slot * NUM_FLOATS + TOP_P)
    top_k = tl.load(ints_ptr + slot * NUM_INTS + TOP_K)
    if is_filtered(temperature, min_p, top_k, top_p, VOCAB_SIZE):
        if is_changed:
            tl.store(rewritten_ptr + row * VOCAB_SIZE + token, x, mask=is_token)
        num_groups: tl.constexpr = (VOCAB_SIZE + GROUP - 1) // GROUP
        group = chunk * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
        group_max = tl.max(tl.reshape(x, (CHUNK // GROUP, GROUP)), axis=1)
        tl.store(group_max_ptr + row * num_groups + group, group_max, mask=group < num_groups)
        chunk_max = tl.max(x, axis=0)
        # A chunk of masked tokens alone has no mass.
        weights = tl.exp(x - tl.where(chunk_max == float("-inf"), 0.0, chunk_max))
        tl.store(chunk_max_ptr + row * num_chunks + chunk, chunk_max)
        tl.store(chunk_mass_ptr + row * num_chunks + chunk, tl.sum(weights, axis=0))
    else:
        if samples:
            seed = tl.load(ints_ptr + slot * NUM_INTS + SEED)
            counter = chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4)
            x += tl.reshape(gumbel_noise(seed, num_tokens, counter), (CHUNK,))
        best = tl.max(tl.where(is_token, rank(x, token), NOTHING), axis=0)
        tl.store(best_ptr + row * num_chunks + chunk, best)
