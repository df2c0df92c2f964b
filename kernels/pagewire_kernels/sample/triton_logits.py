"""The stages that change the logits of one chunk of one row on a GPU before a token is chosen."""

import triton
import triton.language as tl

from pagewire_kernels.sample import columns
from pagewire_kernels.sample.columns import int_column, list_column
from pagewire_kernels.sample.triton_bans import ban_bad_words, keep_allowed, mask_stop_tokens
from pagewire_kernels.sample.triton_penalties import has_penalties, penalise
from pagewire_kernels.sample.triton_row import NUM_INTS

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_LIST_WIDTH, _MAX_BIASES = tl.constexpr(columns.LIST_WIDTH), tl.constexpr(columns.MAX_BIASES)
_NUM_BIASES, _BIASES = tl.constexpr(int_column("logit_bias")), tl.constexpr(list_column("logit_bias"))
_NUM_ALLOWED = tl.constexpr(int_column("allowed_token_ids"))
_NUM_BAD_WORDS = tl.constexpr(int_column("bad_words"))
_NUM_PROMPT = tl.constexpr(int_column("num_prompt_tokens"))
_MIN_LEN = tl.constexpr(int_column("min_len"))
_AT_ONCE = tl.constexpr(256)
"""Biases that are looked at together: two for each thread of a chunk."""


@triton.jit
def _add_biases(x, scratch_ptr, entries_ptr, num_biases, num_in_chunk, first_token, CHUNK: tl.constexpr):
    """Adds the biases of tokens in the chunk. scratch_ptr: CHUNK floats of the program's own."""
    offset = tl.arange(0, CHUNK)
    tl.store(scratch_ptr + offset, 0.0, mask=offset < num_in_chunk)
    # Between the barriers each thread writes where others have cleared and will read. No token comes twice.
    tl.debug_barrier()
    for first in range(0, num_biases, _AT_ONCE):
        place = first + tl.arange(0, _AT_ONCE)
        is_bias = place < num_biases
        token = tl.load(entries_ptr + place, mask=is_bias, other=-1) - first_token  # [_AT_ONCE]
        bias = tl.load(entries_ptr + _MAX_BIASES + place, mask=is_bias, other=0).to(tl.float32, bitcast=True)
        tl.store(scratch_ptr + token, bias, mask=(token >= 0) & (token < num_in_chunk))
    tl.debug_barrier()
    x += tl.load(scratch_ptr + offset, mask=offset < num_in_chunk, other=0.0)
    # The next stage may use the scratch space.
    tl.debug_barrier()
    return x


@triton.jit
def _masks_stop(ints_ptr, slot, num_tokens):
    """Returns whether the slot's sequence is too short to stop."""
    return num_tokens < tl.load(ints_ptr + slot * NUM_INTS + _MIN_LEN)


@triton.jit
def mask_of(mask_rows_ptr, num_masks, row):
    """The row's mask among those of the batch, int64; -1: it has none."""
    mask = tl.full([], -1, tl.int64)
    if num_masks > 0:
        mask = tl.load(mask_rows_ptr + row)
    return mask


@triton.jit
def changes_logits(floats_ptr, ints_ptr, slot, num_tokens, mask, RARE: tl.constexpr):
    """Returns whether some stage changes the logits of the slot's row; mask: as mask_of has it."""
    changes = has_penalties(floats_ptr, slot) | _masks_stop(ints_ptr, slot, num_tokens)
    if RARE:
        ints_ptr += slot * NUM_INTS
        changes |= mask >= 0
        changes |= tl.load(ints_ptr + _NUM_ALLOWED) > 0
        changes |= tl.load(ints_ptr + _NUM_BAD_WORDS) > 0
        changes |= tl.load(ints_ptr + _NUM_BIASES) > 0
    return changes


@triton.jit
def take_tokens(
    x,
    scratch_ptr,
    ints_ptr,
    masks_ptr,
    allowed_ptr,
    bad_words_ptr,
    slot,
    mask,
    tokens_ptr,
    num_tokens,
    num_in_chunk,
    first_token,
    stride_masks,
    VOCAB_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Applies masks, allowed tokens and bad words; arguments as change_logits has them."""
    if mask >= 0:
        x = keep_allowed(x, masks_ptr + mask * stride_masks, first_token, num_in_chunk, CHUNK)
    ints_ptr += slot * NUM_INTS
    if tl.load(ints_ptr + _NUM_ALLOWED) > 0:
        allowed_bytes: tl.constexpr = 4 * ((VOCAB_SIZE + 31) // 32)
        x = keep_allowed(x, allowed_ptr + slot * allowed_bytes, first_token, num_in_chunk, CHUNK)
    num_bad_words = tl.load(ints_ptr + _NUM_BAD_WORDS).to(tl.int32)
    if num_bad_words > 0:
        num_prompt = tl.load(ints_ptr + _NUM_PROMPT)
        x = ban_bad_words(
            x, scratch_ptr, bad_words_ptr, slot, num_bad_words, tokens_ptr, num_prompt, num_tokens, num_in_chunk,
            first_token, CHUNK,
        )  # fmt: skip
    return x


@triton.jit
def take_stop_tokens(x, token, ints_ptr, slot, stops_ptr, num_tokens, NUM_STOPS: tl.constexpr):
    """Takes the stop tokens of a sequence that is too short to stop."""
    if _masks_stop(ints_ptr, slot, num_tokens):
        x = mask_stop_tokens(x, token, stops_ptr, NUM_STOPS)
    return x


@triton.jit
def change_logits(
    x,
    token,
    scratch_ptr,
    counts_ptr,
    floats_ptr,
    ints_ptr,
    lists_ptr,
    masks_ptr,
    allowed_ptr,
    bad_words_ptr,
    slot,
    mask,
    tokens_ptr,
    num_tokens,
    stops_ptr,
    num_in_chunk,
    first_token,
    stride_masks,
    RARE: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS_AT_ONCE: tl.constexpr,
):
    """Applies the stages that the row's mask and the slot's columns ask for; returns x.

    Args:
        x, token: [CHUNK] float32 logits and their token ids.
        scratch_ptr, counts_ptr: The program's own CHUNK words of memory, as floats and as integers.
        masks_ptr, allowed_ptr: Bytes of all masks of the batch, stride_masks for each, and of all slots.
        tokens_ptr, stops_ptr: The slot's known tokens and stop tokens.
        RARE: Whether some row of the batch needs RARE_STAGES.
    """
    if RARE:
        x = take_tokens(
            x, scratch_ptr, ints_ptr, masks_ptr, allowed_ptr, bad_words_ptr, slot, mask, tokens_ptr, num_tokens,
            num_in_chunk, first_token, stride_masks, VOCAB_SIZE, CHUNK,
        )  # fmt: skip
        num_biases = tl.load(ints_ptr + slot * NUM_INTS + _NUM_BIASES).to(tl.int32)
        if num_biases > 0:
            entries_ptr = lists_ptr + slot * _LIST_WIDTH + _BIASES
            x = _add_biases(x, scratch_ptr, entries_ptr, num_biases, num_in_chunk, first_token, CHUNK)
    if has_penalties(floats_ptr, slot):
        x = penalise(
            x, counts_ptr, floats_ptr, ints_ptr, slot, tokens_ptr, num_tokens, num_in_chunk, first_token, CHUNK,
            TOKENS_AT_ONCE,
        )  # fmt: skip
    return take_stop_tokens(x, token, ints_ptr, slot, stops_ptr, num_tokens, NUM_STOPS)
