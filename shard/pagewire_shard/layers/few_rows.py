"""Matrix products on a GPU: torch's, or for few rows the kernel that reads the weight faster, where that was measured.

What a weight's products are done by is decided once, when it is loaded.
"""

from collections.abc import Callable

import torch
from pagewire_kernels.few_rows_linear import few_rows_linear, tiles_by_rows

from pagewire_shard.layers.linear import Linear, PlainLinear


class FewRowsLinear(PlainLinear):
    """The weight as it is; the kernel for the numbers of rows that have a tile."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._tiles = tiles_by_rows(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        tile = self._tiles[num_rows] if num_rows < len(self._tiles) else None
        if tile is None:
            return super().__call__(x)
        return few_rows_linear(x, self.weight, self.bias, tile=tile)


class SiluGated:
    """silu(gate) * up of a product that yields both side by side: in one launch for few rows, else in two."""

    def __init__(self, up: PlainLinear, activate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._up = up
        self._activate = activate
        self._tiles = tiles_by_rows(up.weight, gated=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_rows, in_features] -> [num_rows, half of up's out_features]."""
        num_rows = x.shape[0]
        tile = self._tiles[num_rows] if num_rows < len(self._tiles) else None
        if tile is None:
            return self._activate(self._up(x))
        return few_rows_linear(x, self._up.weight, self._up.bias, gated=True, tile=tile)


def gpu_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The fastest Linear for this weight on its GPU."""
    return FewRowsLinear(weight, bias) if tiles_by_rows(weight) else PlainLinear(weight, bias)
