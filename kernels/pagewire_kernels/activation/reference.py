"""The definitions of silu_and_mul, gelu_and_mul and xielu."""

from typing import Literal

import torch
import torch.nn.functional as F

XIELU_LINEAR = 0.5
"""xIELU's slope at 0."""


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_and_mul(x: torch.Tensor, approximate: Literal["none", "tanh"] = "none") -> torch.Tensor:
    """gelu(gate) * up."""
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate) * up


def xielu(x: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """XIELU_LINEAR * x, and slopes[0] * x**2 above 0, slopes[1] * (exp(x) - 1 - x) below."""
    x32 = x.float()
    below = x32.clamp(max=0.0)
    curve = torch.where(x32 > 0, slopes[0] * x32 * x32, slopes[1] * (torch.expm1(below) - below))
    return (curve + XIELU_LINEAR * x32).to(x.dtype)
