"""The tokens that rows may sample, on a GPU: logits without the others."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.triton_logits import mask_of, take_stop_tokens, take_tokens
from pagewire_kernels.sample.triton_masks import masks_of

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

CHUNK = 2048
"""Tokens that a program treats at once."""
NUM_WARPS = 8


@triton.jit(
    do_not_specialize=["num_masks", "stride_masks"], do_not_specialize_on_alignment=["masks_ptr", "mask_rows_ptr"]
)
def take_kernel(
    logits_ptr,
    slots_ptr,
    ints_ptr,
    num_tokens_ptr,
    token_ids_ptr,
    stop_token_ids_ptr,
    masks_ptr,
    mask_rows_ptr,
    allowed_ptr,
    bad_words_ptr,
    scratch_ptr,
    out_ptr,
    num_masks,
    stride_logits,
    stride_num_tokens,
    stride_tokens,
    stride_stops,
    stride_masks,
    VOCAB_SIZE: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: (num_chunks, num_rows); one program copies a chunk of a row, minus infinity where a token may not be
    sampled. scratch: [num_rows, VOCAB_SIZE] float32; out: the same of the logits' type."""
    first_token = tl.program_id(0) * CHUNK
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    num_tokens = tl.load(num_tokens_ptr + slot * stride_num_tokens)
    mask = mask_of(mask_rows_ptr, num_masks, row)
    token = first_token + tl.arange(0, CHUNK)
    is_token = token < VOCAB_SIZE
    x = tl.load(logits_ptr + row * stride_logits + token, mask=is_token, other=float("-inf")).to(tl.float32)
    num_in_chunk = tl.minimum(VOCAB_SIZE - first_token, CHUNK)
    x = take_tokens(
        x, scratch_ptr + row * VOCAB_SIZE + first_token, ints_ptr, masks_ptr, allowed_ptr, bad_words_ptr, slot, mask,
        token_ids_ptr + slot * stride_tokens, num_tokens, num_in_chunk, first_token, stride_masks, VOCAB_SIZE, CHUNK,
    )  # fmt: skip
    x = take_stop_tokens(x, token, ints_ptr, slot, stop_token_ids_ptr + slot * stride_stops, num_tokens, NUM_STOPS)
    tl.store(out_ptr + row * VOCAB_SIZE + token, x.to(out_ptr.dtype.element_ty), mask=is_token)


def taken(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """A copy of the logits, minus infinity where a row may not sample a token."""
    sequences, columns = batch.sequences, batch.columns
    token_ids, stop_token_ids = sequences.token_ids, sequences.stop_token_ids
    num_tokens = sequences.ints[:, sequences.columns.num_tokens]
    num_rows, vocab_size = logits.shape
    out = torch.empty((num_rows, vocab_size), dtype=logits.dtype, device=logits.device)
    scratch = torch.empty((num_rows, vocab_size), device=logits.device)
    masks, mask_rows, num_masks = masks_of(batch)
    if num_rows:
        take_kernel[(triton.cdiv(vocab_size, CHUNK), num_rows)](
            logits, batch.slots, columns.ints, num_tokens, token_ids, stop_token_ids, masks, mask_rows,
            columns.allowed.view(torch.uint8), columns.bad_words, scratch, out, num_masks, logits.stride(0),
            num_tokens.stride(0), token_ids.stride(0), stop_token_ids.stride(0), masks.stride(0), VOCAB_SIZE=vocab_size,
            NUM_STOPS=stop_token_ids.shape[1], CHUNK=CHUNK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out
