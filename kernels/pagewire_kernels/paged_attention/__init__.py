"""Causal attention over the paged KV cache: one op for prefill, chunked prefill, decode and mixtures of them."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.paged_attention import reference

__all__ = ["paged_attention"]


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
    sliding_window: int = 0,
    logit_softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    num_decodes: int = 0,
) -> torch.Tensor:
    """Attends from the new tokens of each sequence to all of its tokens so far, which the cache already holds.

    A sequence's query_len new tokens are its last ones: token i of them stands at seq_len - query_len + i.

    Args:
        query: [num_tokens, num_heads, head_dim], sequence after sequence; each token's heads contiguous. num_heads is
            a multiple of the cache's num_kv_heads.
        key_cache: In the device's layout (kv_cache.py), query's dtype.
        value_cache: Likewise.
        block_tables: [num_seqs, max_blocks] int32, rows contiguous; entries beyond a sequence's length are not read.
        query_start_loc: [num_seqs + 1] int32.
        seq_lens: [num_seqs] int32, new tokens included; 0: the row is void and its output is zero.
        scale: Multiplies the scores; positive.
        max_query_len: Upper bound of the query lengths. 1: every sequence has exactly one new token.
        max_seq_len: Upper bound of seq_lens.
        sliding_window: A token attends to itself and the sliding_window - 1 tokens before it; 0: to all.
        logit_softcap: Scores become cap * tanh(score / cap); 0: they stay.
        alibi_slopes: [num_heads], contiguous: slope * distance is taken off a head's scores (after the cap), where
            distance is how far the key lies behind the query. ALiBi, arXiv:2108.12409.
        sinks: [num_heads], contiguous: a score, neither scaled nor capped, that takes part in a head's softmax and has
            no value.
        num_decodes: The first num_decodes sequences have exactly one new token each; a GPU attends from them in a
            launch of their own. Results do not depend on it.

    Returns:
        [num_tokens, num_heads, head_dim], query's dtype, contiguous. Rows that belong to no sequence are arbitrary.

    Raises:
        ValueError: an input's shape, stride or dtype is not as above, or the device has no such option: a CPU takes
            neither alibi_slopes nor sinks.

    Source: PagedAttention, arXiv:2309.06180; reference.py is the definition of correct.
    """
    return _backend(query.device.type)(
        query,
        key_cache,
        value_cache,
        block_tables,
        query_start_loc,
        seq_lens,
        scale,
        max_query_len,
        max_seq_len,
        sliding_window,
        logit_softcap,
        alibi_slopes,
        sinks,
        num_decodes,
    )


@cache
def _backend(device_type: str) -> Callable[..., torch.Tensor]:
    if device_type == "cpu":
        from pagewire_kernels.paged_attention import cpu

        return cpu.paged_attention
    if device_type == "cuda":
        from pagewire_kernels.paged_attention.triton import paged_attention as triton_kernel

        return triton_kernel
    return reference.paged_attention
