"""Copies whole blocks of the KV cache, for copy-on-write."""

from collections.abc import Callable, Sequence
from functools import cache

import torch

from pagewire_kernels.copy_blocks import reference

__all__ = ["copy_blocks"]


def copy_blocks(caches: Sequence[tuple[torch.Tensor, ...]], source_ids: torch.Tensor, target_ids: torch.Tensor) -> None:
    """Copies block source_ids[i] to block target_ids[i] in every layer's caches, in place.

    Args:
        caches: For each layer its tensors, such as keys and values; blocks are their first dimension.
        source_ids: [num_copies] int64, on the caches' device; none is a target.
        target_ids: [num_copies] int64, distinct.

    Source: PagedAttention, arXiv:2309.06180, section 4.4; reference.py is the definition of correct.
    """
    _backend(source_ids.device.type)(caches, source_ids, target_ids)


@cache
def _backend(device_type: str) -> Callable[..., None]:
    if device_type == "cuda":
        from pagewire_kernels.copy_blocks.triton import copy_blocks as triton_kernel

        return triton_kernel
    return reference.copy_blocks
