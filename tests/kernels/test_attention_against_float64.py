"""Attention against float64 by its plain formula, written apart from the kernels' reference, on a CPU and on a GPU."""

import float64
import pytest
import torch
from kernel_site import Site
from pagewire_kernels import kv_cache
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention

LLAMA = (32, 8, 128)
MIXTURE = ([1, 1, 1, 70, 129, 300], [1, 700, 4097, 70, 1000, 333])
OTHER_HEADS = ((32, 8, 64), (32, 4, 128), (14, 2, 64), (12, 12, 64), (16, 1, 128))
CASES = {
    **{f"decode, blocks of {size}": (LLAMA, [1] * 5, [1, 63, 64, 1025, 5000], size, {}) for size in (16, 32, 64, 128)},
    "one long decode": (LLAMA, [1], [32_768], 64, {}),
    "prefill": (LLAMA, [2000], [2000], 64, {}),
    "continued prefill": (LLAMA, [512], [4096], 64, {}),
    "mixture": (LLAMA, *MIXTURE, 64, {}),
    "mixture, window": (LLAMA, *MIXTURE, 32, {"sliding_window": 257}),
    "mixture, soft cap": (LLAMA, *MIXTURE, 64, {"softcap": 30.0}),
    **{f"mixture, heads {heads}": (heads, *MIXTURE, 64, {}) for heads in OTHER_HEADS},
}
"""Heads (of queries, of keys, size), query lengths, sequence lengths, block size, options."""


def make(site: Site, paged_batch, heads, query_lens, seq_lens, block_size):
    sizes = dict(zip(("num_heads", "num_kv_heads", "head_dim"), heads, strict=True))
    return paged_batch(query_lens, seq_lens, block_size=block_size, dtype=site.dtype, **sizes)


def attend(site: Site, batch, *, sliding_window: int = 0, softcap: float = 0.0, void: tuple[int, ...] = ()):
    """The kernel's output of each sequence; void: sequences that have stopped."""
    caches = (batch.key_cache, batch.value_cache)
    caches = caches if site.is_gpu else kv_cache.to_cpu_layout(*caches)
    query_lens = batch.query_start_loc.diff().tolist()
    seq_lens = batch.seq_lens.clone()
    seq_lens[list(void)] = 0
    # A slice of a wider tensor on the device too, as the query is of the qkv projection.
    query = torch.cat((batch.query, batch.query[:, :2]), 1).to(site.device)[:, : batch.query.shape[1]]
    tensors = (query, *caches, batch.block_tables, batch.query_start_loc, seq_lens)
    inputs = AttentionInputs(
        *(tensor.to(site.device) for tensor in tensors),
        scale=batch.query.shape[2] ** -0.5,
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
        sliding_window=sliding_window,
        logit_softcap=softcap,
        num_decodes=next((i for i, length in enumerate(query_lens) if length != 1), len(query_lens)),
    )
    return paged_attention(inputs).split(query_lens)


def exact(site: Site, batch, **options):
    """In float64, of each sequence."""
    block_size = batch.key_cache.shape[1]
    queries = batch.query.to(site.device).split(batch.query_start_loc.diff().tolist())
    for query, table, seq_len in zip(queries, batch.block_tables, batch.seq_lens.tolist(), strict=True):
        blocks = table[: -(-seq_len // block_size)].long()
        keys, values = (
            cache[blocks].flatten(0, 1)[:seq_len].to(site.device) for cache in (batch.key_cache, batch.value_cache)
        )
        yield float64.attention(query, keys, values, batch.query.shape[2] ** -0.5, **options)


@pytest.mark.parametrize("name", CASES)
def test_attention(site: Site, paged_batch, name: str) -> None:
    heads, query_lens, seq_lens, block_size, options = CASES[name]
    if not site.is_gpu:
        heads = (heads[0] // heads[1], 1, heads[2])
        query_lens, seq_lens = ([max(1, length // 20) for length in lengths] for lengths in (query_lens, seq_lens))
    batch = make(site, paged_batch, heads, query_lens, seq_lens, block_size)
    # Each by itself: a short sequence that is wrong must not hide behind long ones.
    pairs = zip(attend(site, batch, **options), exact(site, batch, **options), strict=True)
    for index, (out, expected) in enumerate(pairs):
        site.check(out, expected, f"sequence {index}")


@pytest.mark.parametrize("query_lens", [[1, 1, 1], [1, 20, 33]], ids=["decodes", "prefills"])
def test_void_sequences_are_zero_and_leave_the_others_right(site: Site, paged_batch, query_lens: list[int]) -> None:
    """Bits of the others may change: into how many splits a sequence goes depends on all of the batch."""
    batch = make(site, paged_batch, (8, 2, 128), query_lens, [50, 90, 70], 16)
    first, void, last = attend(site, batch, void=(1,))
    expected_first, _, expected_last = exact(site, batch)
    assert torch.equal(void, torch.zeros_like(void))
    site.check(first, expected_first, "the first")
    site.check(last, expected_last, "the last")
