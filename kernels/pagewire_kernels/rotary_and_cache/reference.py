"""The definition of rotary_and_cache, on the NHD layout."""

import torch

from pagewire_kernels.reshape_and_cache.reference import reshape_and_cache
from pagewire_kernels.rms_norm.reference import rms_norm
from pagewire_kernels.rotary.reference import apply_rotary


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
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """rms_norm of each head, apply_rotary, then reshape_and_cache."""
    if q_norm_weight is not None and k_norm_weight is not None:
        for heads, weight in ((query, q_norm_weight), (key, k_norm_weight)):
            normalised = rms_norm(heads, weight, eps)
            assert isinstance(normalised, torch.Tensor), "a pair only with a residual"
            heads.copy_(normalised)
    apply_rotary(query, key, positions, cos_sin_cache, interleaved)
    reshape_and_cache(key, value, key_cache, value_cache, slot_mapping)
