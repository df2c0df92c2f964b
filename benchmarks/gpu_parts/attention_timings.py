"""Attention against its roofline and against torch's scaled_dot_product_attention on contiguous keys and values."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from gpu_parts import paged
from gpu_parts.paged import Heads
from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import MAX_COPIES, MIN_COPIES, Call, row

LLAMA_8B, LLAMA_1B, QWEN3_30B = Heads(32, 8, 128), Heads(32, 8, 64), Heads(32, 4, 128)
K = 1024


def decode(heads: Heads, num_seqs: int, seq_len: int, bench: Bench) -> list[Row]:
    """Times one new token of each sequence; bytes count one read of keys and values."""
    num_seqs, seq_len = bench.size(num_seqs, min(num_seqs, 4)), bench.size(seq_len, seq_len // 64)
    name = f"decode, {num_seqs} x {seq_len}, {heads}"
    return _rows(bench, name, heads, (num_seqs, 1, seq_len), MAX_COPIES)


def prefill(heads: Heads, num_seqs: int, query_len: int, seq_len: int, bench: Bench) -> list[Row]:
    """Times the last query_len tokens of each sequence; operations count the products that the causal mask leaves."""
    query_len, seq_len = bench.size(query_len, query_len // 64), bench.size(seq_len, seq_len // 64)
    name = f"prefill, {num_seqs} x {query_len}" + (f" of {seq_len}" if seq_len != query_len else "") + f", {heads}"
    return _rows(bench, name, heads, (num_seqs, query_len, seq_len), MIN_COPIES)


def _rows(bench: Bench, name: str, heads: Heads, shape: tuple[int, int, int], max_copies: int) -> list[Row]:
    num_seqs, query_len, seq_len = shape
    query_bytes = num_seqs * query_len * heads.num_heads * heads.head_dim * bench.dtype.itemsize
    cache_bytes = 2 * num_seqs * seq_len * heads.num_kv_heads * heads.head_dim * bench.dtype.itemsize
    num_products = num_seqs * (query_len * seq_len - query_len * (query_len - 1) // 2)
    work = (cache_bytes + 2 * query_bytes, 4 * heads.num_heads * heads.head_dim * num_products)
    ours = row(bench, name, partial(_ours, bench, heads, *shape), *work, max_copies=max_copies)
    if 1 < query_len < seq_len:
        # For a continued prefill: torch's causal mask is aligned to the first key, not to the last.
        return [ours]
    peer = row(bench, f"torch, {name}", partial(_peer, bench, heads, *shape), *work, max_copies=max_copies)
    return [ours | {"speed_up": peer["median_us"] / ours["median_us"]}, peer]


def _ours(bench: Bench, heads: Heads, num_seqs: int, query_len: int, seq_len: int) -> Call:
    return paged.make(bench, heads, [query_len] * num_seqs, [seq_len] * num_seqs).attend


def _peer(bench: Bench, heads: Heads, num_seqs: int, query_len: int, seq_len: int) -> Call:
    """Torch's attention, on contiguous keys and values: [num_seqs, num_kv_heads, seq_len, head_dim]."""
    query, keys, values = (
        torch.randn(num_seqs, num_heads, length, heads.head_dim, dtype=bench.dtype, device=bench.device)
        for num_heads, length in ((heads.num_heads, query_len), *((heads.num_kv_heads, seq_len),) * 2)
    )
    causal = query_len > 1
    return partial(
        torch.nn.functional.scaled_dot_product_attention, query, keys, values, is_causal=causal, enable_gqa=True
    )


def options(bench: Bench) -> list[Row]:
    """Times decodes with sinks and sliding windows beside plain ones that read as many keys."""
    gpt_oss, gemma_3 = Heads(64, 8, 64), Heads(32, 16, 128)
    rows = []
    for heads, num_seqs, seq_len, window, has_sinks in (
        (gpt_oss, 64, 8 * K, 0, True),
        (gpt_oss, 256, 4 * K, 128, True),
        (gpt_oss, 64, 8 * K, 128, True),
        (gemma_3, 64, 8 * K, K, False),
        (LLAMA_8B, 64, 8 * K, 4 * K, False),
    ):
        num_seqs, seq_len, window = bench.size(num_seqs, 4), bench.size(seq_len, 130), bench.size(window, window // 64)
        num_keys = window or seq_len
        kinds = f"{num_seqs} x {num_keys}"
        num_bytes = (
            2 * num_seqs * heads.head_dim * bench.dtype.itemsize * (num_keys * heads.num_kv_heads + heads.num_heads)
        )
        plain = row(bench, f"decode, {kinds}, {heads}", partial(_ours, bench, heads, num_seqs, 1, num_keys), num_bytes)
        given: dict[str, Any] = {"sliding_window": window} if window else {}
        if has_sinks:
            given["sinks"] = torch.zeros(heads.num_heads, dtype=bench.dtype, device=bench.device)
        named = " and ".join(["sinks"] * has_sinks + ["a window"] * bool(window))

        def make(heads: Heads = heads, shape: tuple[int, int] = (num_seqs, seq_len), given: Any = given) -> Call:
            return replace(paged.make(bench, heads, [1] * shape[0], [shape[1]] * shape[0]), options=given).attend

        ours = row(bench, f"decode with {named}, {kinds} of {seq_len}, {heads}", make, num_bytes)
        rows += [plain, ours | {"speed_up": plain["median_us"] / ours["median_us"]}]
    return rows


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
    Part("attention:options", options),
    *(Part(_name("decode", h, f"{n}x{k}k"), partial(decode, h, n, k * K)) for h, n, k in DECODES),
    *(Part(_name("prefill", h, f"{n}x{q}k-of-{k}k"), partial(prefill, h, n, q * K, k * K)) for h, n, q, k in PREFILLS),
)
