"""The penalties of one chunk of one row on a GPU."""

import triton
import triton.language as tl

from pagewire_kernels.sample.columns import float_column, int_column
from pagewire_kernels.sample.triton_row import NUM_FLOATS, NUM_INTS

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

TOKENS_AT_ONCE = 1024
"""Tokens of a sequence that are counted at once."""
_PRESENCE, _FREQUENCY, _REPETITION = (
    tl.constexpr(float_column(f"{name}_penalty")) for name in ("presence", "frequency", "repetition")
)
_NUM_PROMPT = tl.constexpr(int_column("num_prompt_tokens"))
_IN_PROMPT = tl.constexpr(1 << 30)


@triton.jit
def has_penalties(floats_ptr, slot):
    """Returns whether some penalty changes the logits of the slot's sequence."""
    floats_ptr += slot * NUM_FLOATS
    repetition = tl.load(floats_ptr + _REPETITION)
    frequency = tl.load(floats_ptr + _FREQUENCY)
    presence = tl.load(floats_ptr + _PRESENCE)
    return (repetition != 1.0) | (frequency != 0.0) | (presence != 0.0)


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
def _divide(x, divisor):
    """x / divisor, a scalar, correctly rounded (Markstein) for what logits and penalties are; div_rn takes registers to
    serve denormal numbers too."""
    reciprocal = tl.div_rn(1.0, divisor)
    quotient = x * reciprocal
    remainder = tl.fma(-quotient, tl.zeros_like(x) + divisor, x)
    corrected = tl.fma(remainder, tl.zeros_like(x) + reciprocal, quotient)
    return tl.where(tl.abs(quotient) < float("inf"), corrected, quotient)


@triton.jit
def penalise(
    x,
    scratch_ptr,
    floats_ptr,
    ints_ptr,
    slot,
    tokens_ptr,
    num_tokens,
    num_in_chunk,
    first_token,
    CHUNK: tl.constexpr,
    TOKENS_AT_ONCE: tl.constexpr,
):
    """Applies the repetition penalty to all tokens of the sequence, frequency and presence penalty to its output.

    x: [CHUNK] float32. scratch_ptr: CHUNK integers of the program's own.
    """
    floats_ptr += slot * NUM_FLOATS
    num_prompt = tl.load(ints_ptr + slot * NUM_INTS + _NUM_PROMPT).to(tl.int32)
    counts = _counts_in_chunk(
        scratch_ptr, tokens_ptr, num_tokens.to(tl.int32), num_prompt, num_in_chunk, first_token, CHUNK, TOKENS_AT_ONCE
    )
    repetition = tl.load(floats_ptr + _REPETITION)
    repeated = tl.where(x > 0.0, _divide(x, repetition), x * repetition)
    generated = counts & (_IN_PROMPT - 1)
    x = tl.where(counts != 0, repeated, x) - tl.load(floats_ptr + _FREQUENCY) * generated.to(tl.float32)
    return x - tl.where(generated > 0, tl.load(floats_ptr + _PRESENCE), 0.0)
