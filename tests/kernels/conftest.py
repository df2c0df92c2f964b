"""Paged batches for the attention and cache tests, and the devices on which kernels are compared with float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kernel_site import MAX_ERRORS, Site


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Inputs of paged_attention on the NHD layout; every slot that no token owns holds NaN."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    max_query_len: int
    max_seq_len: int


class PagedBatchFactory:
    """Builds paged batches whose blocks are scattered over the pool."""

    def __call__(
        self,
        query_lens: list[int],
        seq_lens: list[int],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_dim: int = 16,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> PagedBatch:
        generator = torch.Generator().manual_seed(seed)
        num_blocks = [-(-seq_len // block_size) for seq_len in seq_lens]
        pool = torch.randperm(sum(num_blocks) + 3, generator=generator).tolist()
        shape = (len(pool), block_size, num_kv_heads, head_dim)
        key_cache, value_cache = (torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
        # Entries beyond a sequence's blocks are arbitrary: a block id that would be noticed.
        block_tables = torch.full((len(seq_lens), max(num_blocks) + 1), 2**30, dtype=torch.int32)
        for row, seq_len in enumerate(seq_lens):
            blocks = [pool.pop() for _ in range(num_blocks[row])]
            block_tables[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
            for i, block in enumerate(blocks):
                num_tokens = min(block_size, seq_len - i * block_size)
                for cache in (key_cache, value_cache):
                    values = torch.randn(num_tokens, num_kv_heads, head_dim, generator=generator)
                    cache[block, :num_tokens] = values.to(dtype)
        # A slice of a wider tensor, as the query is of the qkv projection, whose width is a multiple of 16 too.
        width = num_heads * head_dim
        projected = torch.randn(sum(query_lens), width + 16, generator=generator).to(dtype)
        starts = [sum(query_lens[:i]) for i in range(len(query_lens) + 1)]
        return PagedBatch(
            query=projected[:, :width].unflatten(1, (num_heads, head_dim)),
            key_cache=key_cache,
            value_cache=value_cache,
            block_tables=block_tables,
            query_start_loc=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            max_query_len=max(query_lens),
            max_seq_len=max(seq_lens),
        )


@pytest.fixture
def paged_batch() -> PagedBatchFactory:
    return PagedBatchFactory()


NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
SITES = [
    pytest.param(("cpu", torch.float32), id="cpu-float32"),
    *(pytest.param(("cuda", dtype), id=f"cuda-{dtype}".replace("torch.", ""), marks=NEEDS_GPU) for dtype in MAX_ERRORS),
]


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> Site:
    """A CPU in float32, which is all its kernels take, and a GPU in every dtype; random numbers begin anew."""
    return _site(*request.param)


@pytest.fixture(params=[SITES[0], *(site for site in SITES if site.id == "cuda-float32")])
def float32_site(request: pytest.FixtureRequest) -> Site:
    """For kernels that know no other dtype."""
    return _site(*request.param)


def _site(device: str, dtype: torch.dtype) -> Site:
    torch.manual_seed(0)
    return Site(torch.device(device), dtype)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills new tensors with NaN or a large integer, so that an element which a kernel does not write is noticed."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 2**30)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: poisoned(x.shape, dtype=x.dtype, device=x.device))
