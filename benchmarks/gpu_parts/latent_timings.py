"""Multi-head latent attention in the shapes of DeepSeek-V3, of one of its 8 ranks, and of GLM-4.7-Flash.

Bytes of decodes are one read of the latents, beside which a copy stands. Operations count the products with latents,
as the absorbed kernel does them.
"""

from collections.abc import Iterator
from functools import partial

import torch
from pagewire_kernels.latent_attention import LatentInputs, latent_attention

from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import MAX_COPIES, MIN_COPIES, Call, row

LATENT_DIM, ROPE_DIM, BLOCK_SIZE = 512, 64, 64
HEADS = (16, 20, 32, 64, 128)
K = 1024


def latent_inputs(bench: Bench, num_heads: int, query_lens: list[int], seq_lens: list[int]) -> LatentInputs:
    """Random latents in blocks that are scattered over the pool."""
    device, num_tokens = bench.device, sum(query_lens)
    num_blocks = [-(-length // BLOCK_SIZE) for length in seq_lens]
    pool = torch.randperm(sum(num_blocks), device=device, dtype=torch.int32)
    block_tables = torch.zeros((len(seq_lens), max(num_blocks)), dtype=torch.int32, device=device)
    for table, blocks in zip(block_tables, torch.split(pool, num_blocks), strict=True):
        table[: len(blocks)] = blocks
    randn = partial(torch.randn, dtype=bench.dtype, device=device)
    return LatentInputs(
        query_latent=randn(num_tokens, num_heads, LATENT_DIM),
        query_rope=randn(num_tokens, num_heads, ROPE_DIM),
        cache=randn(sum(num_blocks), BLOCK_SIZE, LATENT_DIM + ROPE_DIM),
        block_tables=block_tables,
        query_start_loc=torch.tensor([0, *query_lens], device=device).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        scale=(128 + ROPE_DIM) ** -0.5,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
    )


def latent_rows(bench: Bench) -> Iterator[Row]:
    """Decodes of several numbers of heads and lengths, and prompts with and without a cached context."""
    for num_heads in HEADS:
        for num_seqs, seq_len in ((1, 4 * K), (1, 32 * K), (64, 4 * K)):
            yield _row(bench, "decode", bench.size(num_heads, 4), num_seqs, 1, bench.size(seq_len, 70))
    for num_heads in (16, 128):
        for query_len, seq_len in ((4 * K, 4 * K), (2 * K, 8 * K)):
            sizes = bench.size(query_len, 20), bench.size(seq_len, 70)
            yield _row(bench, "prefill", bench.size(num_heads, 4), 1, *sizes)


def _row(bench: Bench, kind: str, num_heads: int, num_seqs: int, query_len: int, seq_len: int) -> Row:
    def make() -> Call:
        return partial(latent_attention, latent_inputs(bench, num_heads, [query_len] * num_seqs, [seq_len] * num_seqs))

    width = LATENT_DIM + ROPE_DIM
    num_products = num_seqs * (query_len * seq_len - query_len * (query_len - 1) // 2)
    num_rows = num_seqs * query_len * num_heads
    num_bytes = bench.dtype.itemsize * (num_seqs * seq_len * width + num_rows * (width + LATENT_DIM))
    num_flops = 2.0 * num_heads * (width + LATENT_DIM) * num_products
    name = f"latent_attention, {kind}, {num_heads} heads, {num_seqs} x " + (f"{query_len} of " if query_len > 1 else "")
    max_copies = MIN_COPIES if query_len > 1 else MAX_COPIES
    return row(bench, f"{name}{seq_len}", make, num_bytes, num_flops, max_copies=max_copies)


def _all(bench: Bench) -> list[Row]:
    return list(latent_rows(bench))


PARTS = (Part("kernels:latent", _all),)
