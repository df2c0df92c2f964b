"""Causal attention over the paged KV cache: one op for prefill, chunked prefill, decode and mixtures of them."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.paged_attention import reference
from pagewire_kernels.paged_attention.inputs import AttentionInputs
from pagewire_kernels.paged_attention.shared_prefixes import SharedPrefixes

__all__ = ["AttentionInputs", "SharedPrefixes", "paged_attention"]


def paged_attention(inputs: AttentionInputs) -> torch.Tensor:
    """Attends from the new tokens of each sequence to all of its tokens so far, which the cache already holds.

    A sequence's query_len new tokens are its last ones: token i of them stands at seq_len - query_len + i.

    Returns:
        [num_tokens, num_heads, head_dim], query's dtype, contiguous. Rows that belong to no sequence are arbitrary.

    Raises:
        ValueError: an input's shape, stride or dtype is not as AttentionInputs says, or the device has no such option.

    Source: PagedAttention, arXiv:2309.06180; reference.py is the definition of correct.
    """
    return _backend(inputs.query.device.type)(inputs)


@cache
def _backend(device_type: str) -> Callable[[AttentionInputs], torch.Tensor]:
    if device_type == "cpu":
        from pagewire_kernels.paged_attention import cpu

        return cpu.paged_attention
    if device_type == "cuda":
        from pagewire_kernels.paged_attention.triton import paged_attention as triton_kernel

        return triton_kernel
    return reference.paged_attention
