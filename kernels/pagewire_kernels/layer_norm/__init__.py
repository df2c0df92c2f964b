"""Layer norm, alone or fused with the residual addition before it."""

from collections.abc import Callable
from functools import cache
from typing import Any, overload

import torch

from pagewire_kernels.layer_norm import reference

__all__ = ["layer_norm"]


@overload
def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor: ...
@overload
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]: ...
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Normalises the last dimension of x to mean 0 and variance 1, then scales and shifts it.

    Args:
        x: [..., hidden], last dimension contiguous.
        weight: [hidden], x's dtype.
        bias: [hidden], x's dtype.
        eps: Added to the variance.
        residual: x's shape and dtype; added to x first.

    Returns:
        The normalised tensor, contiguous; with a residual, also the sum, which is the next residual. Inputs stay as
        they are.

    Source: arXiv:1607.06450; reference.py is the definition of correct, and fast on a CPU.
    """
    if x.is_cuda:
        return _cuda()(x, weight, bias, eps, residual)  # type: ignore[no-any-return]
    return reference.layer_norm(x, weight, bias, eps, residual)


@cache
def _cuda() -> Callable[..., Any]:
    from pagewire_kernels.layer_norm.triton import layer_norm as triton_kernel

    return triton_kernel
