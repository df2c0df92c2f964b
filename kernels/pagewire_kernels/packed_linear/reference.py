"""The definition of packed_linear."""

import torch
import torch.nn.functional as F

from pagewire_kernels.packed_linear.layout import PackedWeight, unpack


def packed_linear(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x @ weight.T + bias; activation "silu" or "gelu_tanh": of the first half of columns, times the other half."""
    rounded = x.to(weight.panels.dtype).float()
    y = F.linear(rounded, unpack(weight).float(), bias)
    if activation is None:
        return y
    gate, up = y.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up
