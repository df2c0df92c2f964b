"""Root-mean-square layer norm, alone or fused with the residual addition before it."""

from collections.abc import Callable
from functools import cache
from typing import Any, overload

import torch

from pagewire_kernels.rms_norm import reference

__all__ = ["rms_norm"]


@overload
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor: ...
@overload
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]: ...
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Normalises the last dimension in float32 and scales it.

    Args:
        x: [..., hidden]; [num_tokens, num_heads, head_dim] normalises each head. Last dimension contiguous.
        weight: [hidden]. In x's dtype it scales what has been rounded to that dtype, as in Llama; in float32 it
            scales before the one rounding, as in Gemma and gpt-oss.
        eps: Added to the mean square.
        residual: x's shape and dtype; added to x first.

    Returns:
        The normalised tensor, contiguous; with a residual, also the sum, which is the next residual. Inputs stay as
        they are.

    Source: arXiv:1910.07467; reference.py is the definition of correct.
    """
    if x.is_cpu and x.dtype is torch.float32:
        return _cpu()(x, weight, eps, residual)  # type: ignore[no-any-return]
    if x.is_cuda:
        return _cuda()(x, weight, eps, residual)  # type: ignore[no-any-return]
    return reference.rms_norm(x, weight, eps, residual)


@cache
def _cpu() -> Callable[..., Any]:
    from pagewire_kernels.rms_norm import cpu

    return cpu.rms_norm


@cache
def _cuda() -> Callable[..., Any]:
    from pagewire_kernels.rms_norm.triton import rms_norm as triton_kernel

    return triton_kernel
