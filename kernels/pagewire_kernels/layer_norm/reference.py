"""The definition of layer_norm. torch's operator is fused and fast on a CPU."""

import torch
import torch.nn.functional as F


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, of x + residual if there is one."""
    if residual is not None:
        x = x + residual
    out = F.layer_norm(x, weight.shape, weight, bias, eps)
    return out if residual is None else (out, x)
