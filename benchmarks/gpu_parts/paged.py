"""Paged batches of any size, made on the device: random keys and values in blocks that are scattered over the pool."""

from dataclasses import dataclass, field
from typing import Any

import torch
from pagewire_kernels import kv_cache
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
from pagewire_kernels.reshape_and_cache import reshape_and_cache

from gpu_parts.part import Bench


@dataclass(frozen=True, slots=True)
class Heads:
    """An attention layer's shape."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.num_heads}/{self.num_kv_heads} heads of {self.head_dim}"


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Inputs of paged_attention; keys and values also as one array each, sequence after sequence."""

    heads: Heads
    query_lens: list[int]
    seq_lens: list[int]
    query: torch.Tensor
    keys: torch.Tensor
    """[sum of seq_lens, num_kv_heads, head_dim]; a void sequence has none."""
    values: torch.Tensor
    caches: kv_cache.KVCache
    block_tables: torch.Tensor
    query_start_loc: torch.Tensor
    lens: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of AttentionInputs."""

    @property
    def num_decodes(self) -> int:
        """Leading sequences with one new token each."""
        return next((i for i, length in enumerate(self.query_lens) if length != 1), len(self.query_lens))

    @property
    def scale(self) -> float:
        return float(self.heads.head_dim**-0.5)

    def attend(self) -> torch.Tensor:
        """Calls the kernel."""
        return paged_attention(
            AttentionInputs(
                self.query,
                *self.caches,
                self.block_tables,
                self.query_start_loc,
                self.lens,
                scale=self.scale,
                max_query_len=max(self.query_lens),
                max_seq_len=max(self.seq_lens),
                num_decodes=self.num_decodes,
                **self.options,
            )
        )


def make(bench: Bench, heads: Heads, query_lens: list[int], seq_lens: list[int], block_size: int = 64) -> PagedBatch:
    """Random contents; slots that no token owns hold NaN, block table entries beyond a sequence's end nonsense."""
    device, dtype = bench.device, bench.dtype
    num_blocks = [-(-length // block_size) for length in seq_lens]
    total = sum(num_blocks)
    pool = torch.randperm(total, device=device, dtype=torch.int32)
    block_tables = torch.full((len(seq_lens), max(num_blocks) + 1), 2**30, dtype=torch.int32, device=device)
    for row, blocks in enumerate(torch.split(pool, num_blocks)):
        block_tables[row, : len(blocks)] = blocks
    caches = kv_cache.allocate(total, block_size, heads.num_kv_heads, heads.head_dim, dtype, device)
    for cache in caches:
        cache.fill_(torch.nan)
    keys, values = (
        torch.randn(sum(seq_lens), heads.num_kv_heads, heads.head_dim, dtype=dtype, device=device) for _ in range(2)
    )
    places = [torch.arange(length, device=device) for length in seq_lens]
    slots = [block_tables[row].long()[p // block_size] * block_size + p % block_size for row, p in enumerate(places)]
    reshape_and_cache(keys, values, *caches, torch.cat(slots))
    # The query is a slice of a wider tensor, as after the qkv projection.
    width = heads.num_heads + 2 * heads.num_kv_heads
    projected = torch.randn(sum(query_lens), width, heads.head_dim, dtype=dtype, device=device)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    return PagedBatch(
        heads=heads,
        query_lens=query_lens,
        seq_lens=seq_lens,
        query=projected[:, : heads.num_heads],
        keys=keys,
        values=values,
        caches=caches,
        block_tables=block_tables,
        query_start_loc=starts.to(device),
        lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
    )
