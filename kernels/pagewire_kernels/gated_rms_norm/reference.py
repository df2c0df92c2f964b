"""The definition of gated_rms_norm."""

import torch
import torch.nn.functional as F


def gated_rms_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int, norm_first: bool
) -> torch.Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over each group, of x * silu(gate), or times silu(gate)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    activated = F.silu(gate.to(dtype))
    wide = x.to(dtype) if norm_first else x.to(dtype) * activated
    groups = wide.reshape(len(x), -1, group_size)
    normalised = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    out = (normalised * weight.to(dtype).view(-1, group_size)).view(x.shape)
    return (out * activated if norm_first else out).to(x.dtype)
