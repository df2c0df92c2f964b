"""Root-mean-square norm of groups of columns, gated before or after: what follows recurrent mixers."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.gated_rms_norm import reference

__all__ = ["gated_rms_norm"]


def gated_rms_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int, *, norm_first: bool
) -> torch.Tensor:
    """norm(x * silu(gate)), or norm(x) * silu(gate) with norm_first, in float32 with one rounding.

    Args:
        x: [num_tokens, width], rows contiguous.
        gate: [num_tokens, width], rows contiguous, x's dtype.
        weight: [width], or [group_size] if all groups have the same; any dtype.
        eps: Added to the mean square of each group.
        group_size: Columns that are normalised together; divides width.

    Returns:
        [num_tokens, width], x's dtype, contiguous. Inputs stay as they are.

    Source: Mamba-2, arXiv:2405.21060, section 7.1; reference.py is the definition of correct.
    """
    width = x.shape[1]
    if gate.shape != x.shape or gate.dtype is not x.dtype or x.stride(1) != 1 or gate.stride(1) != 1:
        raise ValueError("x and gate must have one shape and dtype, and contiguous rows")
    if width % group_size or weight.shape not in ((width,), (group_size,)) or not weight.is_contiguous():
        raise ValueError(f"groups of {group_size} and a weight of {list(weight.shape)} do not fit {width} columns")
    return _backend(x.device.type)(x, gate, weight, eps, group_size, norm_first)


@cache
def _backend(device_type: str) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, int, bool], torch.Tensor]:
    if device_type == "cpu":
        from pagewire_kernels.gated_rms_norm import cpu

        return cpu.gated_rms_norm
    if device_type == "cuda":
        from pagewire_kernels.gated_rms_norm.triton import gated_rms_norm as triton_kernel

        return triton_kernel
    return reference.gated_rms_norm
