"""Writes new keys and values into the paged KV cache."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.reshape_and_cache import reference

__all__ = ["reshape_and_cache"]


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Writes each token's key and value into its slot, in place.

    Args:
        key: [num_tokens, num_kv_heads, head_dim]; each token's heads contiguous.
        value: like key.
        key_cache: In the device's layout (kv_cache.py).
        value_cache: In the device's layout, key's dtype.
        slot_mapping: [num_tokens] int64; block_id * block_size + offset, -1: not written.

    Source: PagedAttention, arXiv:2309.06180, section 4; reference.py is the definition of correct.
    """
    _backend(key.device.type)(key, value, key_cache, value_cache, slot_mapping)


@cache
def _backend(device_type: str) -> Callable[..., None]:
    if device_type == "cpu":
        from pagewire_kernels.cpu import rotary_worker

        return rotary_worker.reshape_and_cache
    if device_type == "cuda":
        from pagewire_kernels.reshape_and_cache.triton import reshape_and_cache as triton_kernel

        return triton_kernel
    return reference.reshape_and_cache
