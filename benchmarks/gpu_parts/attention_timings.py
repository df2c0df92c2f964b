"""Attention against its roofline and against torch's scaled_dot_product_attention on contiguous keys and values."""

from functools import partial

import torch

from gpu_parts import paged
from gpu_parts.paged import Heads, PagedBatch
from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import row

LLAMA_8B, LLAMA_1B, QWEN3_30B = Heads(32, 8, 128), Heads(32, 8, 64), Heads(32, 4, 128)
K = 1024


def decode(heads: Heads, num_seqs: int, seq_len: int, bench: Bench) -> list[Row]:
    """One new token of each sequence: keys and values are read once."""
    num_seqs, seq_len = bench.size(num_seqs, min(num_seqs, 4)), bench.size(seq_len, seq_len // 64)
    batch = paged.make(bench, heads, [1] * num_seqs, [seq_len] * num_seqs)
    num_bytes = batch.keys.nbytes + batch.values.nbytes + 2 * batch.query.numel() * batch.query.element_size()
    return _rows(bench, f"decode, {num_seqs} x {seq_len}, {heads}", batch, num_bytes, causal=False)


def prefill(heads: Heads, num_seqs: int, query_len: int, seq_len: int, bench: Bench) -> list[Row]:
    """The last query_len tokens of each sequence; of the products, those that the causal mask leaves."""
    query_len, seq_len = bench.size(query_len, query_len // 64), bench.size(seq_len, seq_len // 64)
    batch = paged.make(bench, heads, [query_len] * num_seqs, [seq_len] * num_seqs)
    num_bytes = batch.keys.nbytes + batch.values.nbytes + 2 * batch.query.numel() * batch.query.element_size()
    name = f"prefill, {num_seqs} x {query_len}" + (f" of {seq_len}" if seq_len != query_len else "") + f", {heads}"
    return _rows(bench, name, batch, num_bytes, causal=query_len == seq_len)


def _rows(bench: Bench, name: str, batch: PagedBatch, num_bytes: int, *, causal: bool) -> list[Row]:
    num_flops = sum(
        4 * batch.heads.num_heads * batch.heads.head_dim * (n * seq_len - n * (n - 1) // 2)
        for n, seq_len in zip(batch.query_lens, batch.seq_lens, strict=True)
    )
    ours = row(bench, name, batch.attend, num_bytes, num_flops)
    if not causal and batch.query_lens[0] > 1:
        # A continued prefill: torch's causal mask is aligned to the first key, not to the last.
        return [ours]
    num_seqs, heads = len(batch.seq_lens), batch.heads
    query = batch.query.reshape(num_seqs, -1, heads.num_heads, heads.head_dim).transpose(1, 2).contiguous()
    keys, values = (
        x.view(num_seqs, -1, heads.num_kv_heads, heads.head_dim).transpose(1, 2).contiguous()
        for x in (batch.keys, batch.values)
    )
    attend = partial(
        torch.nn.functional.scaled_dot_product_attention, query, keys, values, is_causal=causal, enable_gqa=True
    )
    peer = row(bench, f"torch, {name}", attend, num_bytes, num_flops)
    return [ours | {"speed_up": peer["median_us"] / ours["median_us"]}, peer]


DECODES = (
    *((LLAMA_8B, n, k) for n, k in ((1, 1), (1, 8), (1, 32), (16, 1), (16, 8), (16, 32), (64, 1), (64, 8), (256, 1))),
    (LLAMA_1B, 64, 8),
    (QWEN3_30B, 64, 8),
    (QWEN3_30B, 1, 32),
)
PREFILLS = (
    *((LLAMA_8B, n, q, k) for n, q, k in ((1, 8, 8), (8, 1, 1), (1, 2, 8), (1, 2, 32))),
    (LLAMA_1B, 1, 8, 8),
    (QWEN3_30B, 1, 8, 8),
)


def _name(kind: str, heads: Heads, size: str) -> str:
    return f"attention:{kind}:{heads.num_kv_heads}x{heads.head_dim}:{size}"


PARTS = (
    *(Part(_name("decode", h, f"{n}x{k}k"), partial(decode, h, n, k * K)) for h, n, k in DECODES),
    *(Part(_name("prefill", h, f"{n}x{q}k-of-{k}k"), partial(prefill, h, n, q * K, k * K)) for h, n, q, k in PREFILLS),
)
