"""The definition of rms_norm."""

import torch


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x / sqrt(mean(x**2) + eps) * weight over the last dimension, of x + residual if there is one."""
    if residual is not None:
        x = x + residual
    x32 = x.float()
    normalised = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    if weight.dtype is x.dtype:
        normalised = normalised.to(x.dtype)
    out = (normalised * weight).to(x.dtype)
    return out if residual is None else (out, x)
