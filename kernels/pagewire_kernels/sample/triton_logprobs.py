"""gather_logprobs on a GPU: chunks of all rows side by side, then one program for each row."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.sample.triton_row import NOTHING, key_value, rank, token_of

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

MAX_TOP = 32
"""Most tokens that can be asked for."""
_CHUNK = 2048
"""Tokens of a chunk; as large as those of sampling, for the same reasons."""
_NUM_WARPS = 4
_CHOOSE_WARPS = 8


@triton.jit
def _take_best(ranks):
    """The largest rank, and the others."""
    best = tl.max(ranks, axis=0)
    return best, tl.where(ranks == best, NOTHING, ranks)


@triton.jit(do_not_specialize=["num_top"])
def logprobs_chunk_kernel(
    logits_ptr,
    sampled_ptr,
    chunk_max_ptr,
    chunk_mass_ptr,
    num_larger_ptr,
    top_ptr,
    num_top,
    stride_logits,
    VOCAB_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: (num_chunks, num_rows); one program yields a chunk's maximum, its sum of exp(x - maximum), how many logits
    exceed the sampled token's, and the num_top largest as ranks."""
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    partial = row * tl.num_programs(0) + chunk
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    is_token = token < VOCAB_SIZE
    logits_ptr += row * stride_logits
    x = tl.load(logits_ptr + token, mask=is_token, other=float("-inf")).to(tl.float32)  # [CHUNK]
    chosen = tl.load(logits_ptr + tl.load(sampled_ptr + row)).to(tl.float32)
    maximum = tl.max(x, axis=0)
    weights = tl.exp(x - tl.where(maximum == float("-inf"), 0.0, maximum))
    tl.store(chunk_max_ptr + partial, maximum)
    tl.store(chunk_mass_ptr + partial, tl.sum(weights, axis=0))
    tl.store(num_larger_ptr + partial, tl.sum((x > chosen).to(tl.int32), axis=0))
    ranks = tl.where(is_token, rank(x, token), NOTHING)
    for place in range(num_top):
        best, ranks = _take_best(ranks)
        tl.store(top_ptr + partial * num_top + place, best)


@triton.jit(do_not_specialize=["num_top"])
def logprobs_row_kernel(
    logits_ptr,
    sampled_ptr,
    chunk_max_ptr,
    chunk_mass_ptr,
    num_larger_ptr,
    chunk_top_ptr,
    logprobs_ptr,
    ranks_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    normalisers_ptr,
    num_top,
    stride_logits,
    VOCAB_SIZE: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
):
    """Grid: (num_rows,); one program puts one row's chunks together."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNK_BLOCK)
    is_chunk = chunk < NUM_CHUNKS
    partial = row * NUM_CHUNKS + chunk
    maxima = tl.load(chunk_max_ptr + partial, mask=is_chunk, other=float("-inf"))  # [CHUNK_BLOCK]
    masses = tl.load(chunk_mass_ptr + partial, mask=is_chunk, other=0.0)
    num_larger = tl.load(num_larger_ptr + partial, mask=is_chunk, other=0)
    maximum = tl.max(maxima, axis=0)
    normaliser = maximum + tl.log(tl.sum(masses * tl.exp(maxima - maximum), axis=0))
    chosen = tl.load(logits_ptr + row * stride_logits + tl.load(sampled_ptr + row)).to(tl.float32)
    tl.store(logprobs_ptr + row, chosen - normaliser)
    tl.store(normalisers_ptr + row, normaliser)
    tl.store(ranks_ptr + row, tl.sum(num_larger, axis=0).to(tl.int64) + 1)
    place = tl.arange(0, TOP_BLOCK)
    chunk_top_ptr += row * NUM_CHUNKS * num_top
    ranks = tl.load(chunk_top_ptr + place, mask=place < NUM_CHUNKS * num_top, other=NOTHING)  # [TOP_BLOCK]
    for top in range(num_top):
        best, ranks = _take_best(ranks)
        tl.store(top_ids_ptr + row * num_top + top, token_of(best, VOCAB_SIZE))
        tl.store(top_logprobs_ptr + row * num_top + top, key_value((best >> 32).to(tl.int32)) - normaliser)


def gather_logprobs(logits: torch.Tensor, sampled: torch.Tensor, num_top: int) -> tuple[torch.Tensor, ...]:
    """See the package; also returns the logarithm of the sum of each row's exponentials, [num_rows] float32.

    Args:
        num_top: At most MAX_TOP and vocab_size.
    """
    if logits.stride(1) != 1:
        raise ValueError("the rows of logits must be contiguous")
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    device = logits.device
    chunk_max, chunk_mass = (torch.empty((num_rows, num_chunks), device=device) for _ in range(2))
    num_larger = torch.empty((num_rows, num_chunks), dtype=torch.int32, device=device)
    chunk_top = torch.empty((num_rows, num_chunks, num_top), dtype=torch.int64, device=device)
    logprobs, normalisers = (torch.empty(num_rows, device=device) for _ in range(2))
    ranks = torch.empty(num_rows, dtype=torch.int64, device=device)
    top_ids = torch.empty((num_rows, num_top), dtype=torch.int64, device=device)
    top_logprobs = torch.empty((num_rows, num_top), device=device)
    outputs = (logprobs, ranks, top_ids, top_logprobs, normalisers)
    if num_rows == 0:
        return outputs
    sampled = sampled.contiguous()
    partials = (chunk_max, chunk_mass, num_larger, chunk_top)
    logprobs_chunk_kernel[(num_chunks, num_rows)](
        logits,
        sampled,
        *partials,
        num_top,
        logits.stride(0),
        VOCAB_SIZE=vocab_size,
        CHUNK=_CHUNK,
        num_warps=_NUM_WARPS,
    )
    logprobs_row_kernel[(num_rows,)](
        logits,
        sampled,
        *partials,
        *outputs,
        num_top,
        logits.stride(0),
        VOCAB_SIZE=vocab_size,
        NUM_CHUNKS=num_chunks,
        CHUNK_BLOCK=triton.next_power_of_2(num_chunks),
        TOP_BLOCK=triton.next_power_of_2(num_chunks * MAX_TOP),
        num_warps=_CHOOSE_WARPS,
    )
    return outputs
