"""Matrix products on a GPU: torch's, or for few rows the kernels that read the weight faster, where that was measured.

Which of them serves each number of rows is decided when the weight is loaded.
"""

from collections.abc import Callable

import torch
from pagewire_kernels.few_rows_linear import few_rows_linear, tiles_by_rows
from pagewire_kernels.tuning.few_rows_linear import Tile

from pagewire_shard.layers.activation import GATED, Activation
from pagewire_shard.layers.linear import PlainLinear


class GpuLinear(PlainLinear):
    """The weight as it is; the kernel for the numbers of rows that have a tile in the tuning table."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._tiles = tiles_by_rows(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tile = self._tile(x.shape[0])
        if tile is None:
            return super().__call__(x)
        return few_rows_linear(x, self.weight, self.bias, tile=tile)

    def write(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """See Linear."""
        if self._tile(x.shape[0]) is None:
            super().write(x, out)
        else:
            out.copy_(self(x))

    def _tile(self, num_rows: int) -> Tile | None:
        return self._tiles[num_rows] if num_rows < len(self._tiles) else None

    def gated(self, activation: Activation) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """See Linear: SiLU, for weights that have a tile for it."""
        tiles = tiles_by_rows(self.weight, gated=True) if activation == "silu" else ()
        return _SiluGated(self, tiles) if tiles else None


class _SiluGated:
    """silu(gate) * value of a product that yields both side by side: in one launch for few rows, else in two."""

    def __init__(self, linear: GpuLinear, tiles: tuple[Tile | None, ...]) -> None:
        self._linear = linear
        self._tiles = tiles

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_rows, in_features] -> [num_rows, half of the product's out_features]."""
        num_rows = x.shape[0]
        tile = self._tiles[num_rows] if num_rows < len(self._tiles) else None
        if tile is None:
            return GATED["silu"](self._linear(x))
        return few_rows_linear(x, self._linear.weight, self._linear.bias, gated=True, tile=tile)
