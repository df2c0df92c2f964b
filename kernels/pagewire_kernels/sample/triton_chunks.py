"""First launch of sample on a GPU: all chunks of all rows side by side, so that one row fills many multiprocessors.

A chunk's size never depends on the batch, so that a row's sums do not either.
"""

import triton
import triton.language as tl

from pagewire_kernels.sample.triton_row import (
    GREEDY_BELOW,
    NOTHING,
    gumbel_noise,
    has_penalties,
    is_filtered,
    rank,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

CHUNK = 2048
"""Tokens of a chunk: 63 programs for a row of 128,256, 16 elements for each thread."""
GROUP = 32
"""Tokens whose maximum the second launch looks at before it looks at them: 64 bytes of bfloat16."""
NUM_WARPS = 4
TOKENS_AT_ONCE = 1024
"""Tokens of a sequence that are counted at once."""
_IN_PROMPT = tl.constexpr(1 << 30)


@triton.jit
def _counts_in_chunk(
    counts_ptr, tokens_ptr, num_tokens, num_prompt, num_in_chunk, first_token, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """How often each token of a chunk is in the output of a sequence, [CHUNK] int32, plus _IN_PROMPT if the prompt has
    it. counts_ptr is the program's own scratch space of CHUNK integers."""
    offset = tl.arange(0, CHUNK)
    tl.store(counts_ptr + offset, 0, mask=offset < num_in_chunk)
    # Between the barriers each thread adds to what others have cleared and will read.
    tl.debug_barrier()
    for first in range(0, num_tokens, BLOCK):
        place = first + tl.arange(0, BLOCK)
        token = tl.load(tokens_ptr + place, mask=place < num_tokens, other=-1) - first_token  # [BLOCK]
        inside = (token >= 0) & (token < num_in_chunk)
        in_prompt = place < num_prompt
        tl.atomic_or(counts_ptr + token, _IN_PROMPT, mask=inside & in_prompt, sem="relaxed")
        tl.atomic_add(counts_ptr + token, 1, mask=inside & (place >= num_prompt), sem="relaxed")
    tl.debug_barrier()
    # From where the atomic operations took place.
    counts = tl.load(counts_ptr + offset, mask=offset < num_in_chunk, other=0, cache_modifier=".cg")
    tl.debug_barrier()
    return counts


@triton.jit
def _penalise(x, counts, repetition, frequency, presence):
    """Repetition penalty on all tokens of the sequence, frequency and presence penalty on its output."""
    repeated = tl.where(x > 0.0, tl.div_rn(x, tl.zeros_like(x) + repetition), x * repetition)
    generated = counts & (_IN_PROMPT - 1)
    x = tl.where(counts != 0, repeated, x) - frequency * generated.to(tl.float32)
    return x - tl.where(generated > 0, presence, 0.0)


@triton.jit
def _mask_stop_tokens(x, token, stop_ptr, NUM_STOPS: tl.constexpr):
    """Sets the logits of stop tokens to minus infinity; ids that are none of these tokens do nothing."""
    for stop in range(NUM_STOPS):
        x = tl.where(token == tl.load(stop_ptr + stop), float("-inf"), x)
    return x


@triton.jit
def sample_chunk_kernel(
    logits_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    presence_ptr,
    frequency_ptr,
    repetition_ptr,
    top_k_ptr,
    seeds_ptr,
    positions_ptr,
    num_prompt_ptr,
    num_tokens_ptr,
    token_ids_ptr,
    slots_ptr,
    stop_token_ids_ptr,
    mask_stop_ptr,
    best_ptr,
    group_max_ptr,
    chunk_max_ptr,
    chunk_mass_ptr,
    rewritten_ptr,
    counts_ptr,
    stride_logits,
    stride_floats,
    stride_ints,
    stride_tokens,
    stride_stops,
    BY_SLOT: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS_AT_ONCE: tl.constexpr,
):
    """Grid: (num_chunks, num_rows); one program treats CHUNK logits of one row.

    Of greedy rows and of rows that draw from all tokens it yields the best token, as a rank. Of filtered rows it yields
    the maximum of each group, the chunk's maximum and its sum of exp(x - maximum), and writes the logits down if they
    are not those of the model divided by the temperature. rewritten and counts are the same memory.
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
    index = row
    if BY_SLOT:
        index = slot
    temperature = tl.load(temperature_ptr + index * stride_floats)
    min_p = tl.load(min_p_ptr + index * stride_floats)
    top_p = tl.load(top_p_ptr + index * stride_floats)
    top_k = tl.load(top_k_ptr + index * stride_ints)
    presence = tl.load(presence_ptr + index * stride_floats)
    frequency = tl.load(frequency_ptr + index * stride_floats)
    repetition = tl.load(repetition_ptr + index * stride_floats)
    masks_stop = tl.load(mask_stop_ptr + index) != 0
    penalises = has_penalties(repetition, frequency, presence)
    if penalises:
        num_tokens = tl.load(num_tokens_ptr + index * stride_ints).to(tl.int32)
        num_prompt = tl.load(num_prompt_ptr + index * stride_ints).to(tl.int32)
        tokens_ptr = token_ids_ptr + slot * stride_tokens
        counts_ptr += row * VOCAB_SIZE + first_token
        num_in_chunk = tl.minimum(VOCAB_SIZE - first_token, CHUNK)
        counts = _counts_in_chunk(
            counts_ptr, tokens_ptr, num_tokens, num_prompt, num_in_chunk, first_token, CHUNK, TOKENS_AT_ONCE
        )
        x = _penalise(x, counts, repetition, frequency, presence)
    if masks_stop:
        x = _mask_stop_tokens(x, token, stop_token_ids_ptr + index * stride_stops, NUM_STOPS)
    samples = temperature >= GREEDY_BELOW
    if samples:
        x = tl.div_rn(x, tl.zeros_like(x) + temperature)
    # Infinity is the best of its row whatever is filtered or drawn, and ends as no token.
    x = tl.where(is_poison, float("inf"), x)
    if is_filtered(temperature, min_p, top_k, top_p, VOCAB_SIZE):
        if penalises | masks_stop:
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
            seed = tl.load(seeds_ptr + index * stride_ints)
            position = tl.load(positions_ptr + index * stride_ints)
            counter = chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4)
            x += tl.reshape(gumbel_noise(seed, position, counter), (CHUNK,))
        best = tl.max(tl.where(is_token, rank(x, token), NOTHING), axis=0)
        tl.store(best_ptr + row * num_chunks + chunk, best)
