"""The definition of few_rows_linear."""

import torch
import torch.nn.functional as F

from pagewire_kernels.tuning.few_rows_linear import Tile


def few_rows_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool, tile: Tile | None = None
) -> torch.Tensor:
    """x @ weight.T + bias, or silu(gate) * up of its halves; the tile has no effect."""
    y = F.linear(x, weight, bias)
    if not gated:
        return y
    gate, up = y.chunk(2, dim=-1)
    return F.silu(gate) * up
