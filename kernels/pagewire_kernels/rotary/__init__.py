"""Rotary position embedding, in place."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.rotary import reference

__all__ = ["apply_rotary"]


def apply_rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    interleaved: bool = False,
) -> None:
    """Rotates pairs of the first rotary_dim dimensions of each head by its position's angles, in place.

    Args:
        query: [num_tokens, num_heads, head_dim]; each token's heads contiguous.
        key: [num_tokens, num_kv_heads, head_dim]; likewise.
        positions: [num_tokens] int64.
        cos_sin_cache: [max_position, rotary_dim] float32: rotary_dim / 2 cosines, then as many sines.
        interleaved: Pairs are (0, 1), (2, 3), ... as in GPT-J, instead of (i, i + rotary_dim / 2) as in GPT-NeoX.

    Source: arXiv:2104.09864; reference.py is the definition of correct.
    """
    if query.is_cpu and query.dtype is torch.float32:
        _cpu()(query, key, positions, cos_sin_cache, interleaved)
    else:
        reference.apply_rotary(query, key, positions, cos_sin_cache, interleaved)


@cache
def _cpu() -> Callable[..., None]:
    from pagewire_kernels.cpu import rotary_worker

    return rotary_worker.apply_rotary
