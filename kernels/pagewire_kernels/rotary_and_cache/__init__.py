"""Rotary embedding, the norm of each head before it, and the cache write behind it, in one pass over query, key and
value."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.rotary_and_cache import reference

__all__ = ["rotary_and_cache"]


def rotary_and_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    interleaved: bool = False,
    *,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norms and rotates query in place, and writes the normed and rotated key and the value into their slots.

    The composition of rms_norm of each head (if there are weights), apply_rotary and reshape_and_cache, whose arguments
    the others are. What key holds afterwards is undefined: a GPU leaves it as it was.

    Args:
        q_norm_weight: [head_dim], query's dtype; given together with k_norm_weight or not at all.
        k_norm_weight: [head_dim], key's dtype.
        eps: Added to the mean square of each head.

    Raises:
        ValueError: one norm weight without the other, or a layout that the device's kernel does not take.
    """
    if (q_norm_weight is None) != (k_norm_weight is None):
        raise ValueError("the norm weights of query and key come together")
    _backend(query.device.type)(
        query,
        key,
        value,
        positions,
        cos_sin_cache,
        key_cache,
        value_cache,
        slot_mapping,
        interleaved,
        q_norm_weight,
        k_norm_weight,
        eps,
    )


@cache
def _backend(device_type: str) -> Callable[..., None]:
    if device_type == "cpu":
        from pagewire_kernels.rotary_and_cache import cpu

        return cpu.rotary_and_cache
    if device_type == "cuda":
        from pagewire_kernels.rotary_and_cache.triton import rotary_and_cache as triton_kernel

        return triton_kernel
    return reference.rotary_and_cache
