"""Only products for which the tuning table has a tile go through the kernel for few rows."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from pagewire_kernels.few_rows_linear import reference
from pagewire_kernels.tuning.few_rows_linear import MAX_ROWS, FewRowsTile, Tile
from pagewire_shard.layers import gpu_linear
from pagewire_shard.layers.activation import Activation
from pagewire_shard.layers.gpu_linear import GpuLinear
from pagewire_shard.layers.linear import Linear, float32_linear
from pagewire_shard.layers.mlp import Mlp, MlpSpec

ONE_ROW = FewRowsTile(tensor_cores=False, block_n=8, block_k=512, num_warps=4, num_stages=4, early_release=False)
MORE_ROWS = FewRowsTile(tensor_cores=True, block_n=32, block_k=128, num_warps=4, num_stages=4, early_release=False)
TILES = (None, ONE_ROW, None, *[MORE_ROWS] * (MAX_ROWS - 2))
"""Two rows are torch's."""
HIDDEN, SIZE = 12, 20


@dataclass
class Kernel:
    """Stands for the GPU's: keeps what it was asked for."""

    calls: list[tuple[int, bool, Tile | None]] = field(default_factory=list)

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        gated: bool = False,
        tile: Tile | None = None,
    ) -> torch.Tensor:
        self.calls.append((len(x), gated, tile))
        return reference.few_rows_linear(x, weight, bias, gated)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A device whose table has tiles for every weight."""
    monkeypatch.setattr(gpu_linear, "tiles_by_rows", lambda weight, gated=False: TILES)
    stand_in = Kernel()
    monkeypatch.setattr(gpu_linear, "few_rows_linear", stand_in)
    return stand_in


def mlp(up: Callable[..., Linear], activation: Activation = "silu", *, gated: bool = True) -> Mlp:
    generator = torch.Generator().manual_seed(0)
    height = 2 * SIZE if gated else SIZE
    weights = (torch.randn(*shape, generator=generator) for shape in ((height, HIDDEN), (HIDDEN, SIZE)))
    spec = MlpSpec(SIZE, activation, gated, bias=False)
    return Mlp(spec, up(next(weights), None), float32_linear(next(weights), None))


@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_with_a_tile_go_through_the_kernel(kernel: Kernel, has_bias: bool) -> None:
    weight, bias = torch.randn(SIZE, HIDDEN), torch.randn(SIZE) if has_bias else None
    linear = GpuLinear(weight, bias)
    for num_rows in (0, 1, 2, 3, MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS):
        x = torch.randn(num_rows, HIDDEN)
        torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, weight, bias))
    calls = [(1, False, ONE_ROW), (3, False, MORE_ROWS), (MAX_ROWS, False, MORE_ROWS)]
    assert kernel.calls == calls
    for num_rows in (1, 2, 3, MAX_ROWS, MAX_ROWS + 1):
        x, out = torch.randn(num_rows, HIDDEN), torch.full((num_rows, SIZE), torch.nan)
        linear.write(x, out)
        torch.testing.assert_close(out, torch.nn.functional.linear(x, weight, bias))
    assert kernel.calls == 2 * calls


def test_a_gated_block_takes_gate_and_activation_in_one(kernel: Kernel) -> None:
    block, plain = mlp(GpuLinear), mlp(float32_linear)
    for num_rows in (1, 2, MAX_ROWS, MAX_ROWS + 1):
        x = torch.randn(num_rows, HIDDEN)
        torch.testing.assert_close(block(x), plain(x))
    assert kernel.calls == [(1, True, ONE_ROW), (MAX_ROWS, True, MORE_ROWS)]


@pytest.mark.parametrize(("activation", "gated"), [("gelu", True), ("gelu_tanh", True), ("silu", False)])
def test_other_activations_are_launches_of_their_own(kernel: Kernel, activation: Activation, gated: bool) -> None:
    mlp(GpuLinear, activation, gated=gated)(torch.randn(1, HIDDEN))
    assert kernel.calls == [(1, False, ONE_ROW)]


def test_weights_that_were_not_measured_are_torchs() -> None:
    weight = torch.randn(2 * SIZE, HIDDEN)
    linear = GpuLinear(weight, None)
    assert linear.gated("silu") is None
    x = torch.randn(1, HIDDEN)
    assert torch.equal(linear(x), torch.nn.functional.linear(x, weight))
