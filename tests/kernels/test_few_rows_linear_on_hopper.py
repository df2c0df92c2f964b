"""Products of few rows by the kernel for Hopper, which no interpreter runs, against float64."""

from itertools import pairwise

import float64
import pytest
import torch
from kernel_site import MAX_ERRORS
from pagewire_kernels.few_rows_linear import few_rows_linear, tiles_by_rows
from pagewire_kernels.tuning.few_rows_linear import HopperTile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]
SMALL = HopperTile(rows=16, block_n=64, splits=1, num_warps=4, num_stages=3, panels=2)
SPLIT = HopperTile(rows=32, block_n=64, splits=3, num_warps=4, num_stages=4, panels=1)
WIDE = HopperTile(rows=64, block_n=128, splits=2, num_warps=8, num_stages=2, panels=2)
HIGH = HopperTile(rows=256, block_n=64, splits=1, num_warps=8, num_stages=2, panels=1)
TILES = [SMALL, SPLIT, WIDE, HIGH]


def inputs(num_rows: int, height: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x as a slice of something wider, whose other elements are NaN; the weight between NaN too."""
    torch.manual_seed(height)
    around = torch.full((num_rows, width + 8), torch.nan, dtype=dtype, device="cuda")
    around[:, :width] = torch.randn(num_rows, width, device="cuda")
    walls = torch.full((height + 2, width), torch.nan, dtype=dtype, device="cuda")
    walls[1:-1] = torch.randn(height, width, device="cuda") * width**-0.5
    return around[:, :width], walls[1:-1]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("tile", TILES, ids=["small", "split", "wide", "high"])
@pytest.mark.parametrize(("num_rows", "height", "width"), [(1, 2, 8), (17, 202, 1000), (70, 646, 1096)], ids=str)
def test_rows_are_multiplied(
    num_rows: int, height: int, width: int, tile: HopperTile, gated: bool, dtype: torch.dtype
) -> None:
    x, weight = inputs(num_rows, height, width, dtype)
    for bias in (None, torch.randn(height, dtype=dtype, device="cuda")):
        out = few_rows_linear(x, weight, bias, gated=gated, tile=tile)
        assert out.dtype is dtype
        assert out.shape == (num_rows, height // 2 if gated else height)
        expected = float64.linear(x, weight, bias, gated)
        assert float64.relative_error(out, expected) <= MAX_ERRORS[dtype]


@pytest.mark.parametrize("tile", TILES, ids=["small", "split", "wide", "high"])
def test_a_product_is_the_same_every_time(tile: HopperTile) -> None:
    x, weight = inputs(70, 4096, 4096, torch.bfloat16)
    products = [few_rows_linear(x, weight, tile=tile) for _ in range(50)]
    assert all(torch.equal(left, right) for left, right in pairwise(products))


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    x, weight = inputs(64, 4096, 4096, torch.bfloat16)
    for tile in (WIDE, SPLIT):
        together = few_rows_linear(x, weight, tile=tile)
        assert torch.equal(few_rows_linear(x[5:6], weight, tile=tile), together[5:6])


def test_weights_at_odd_addresses_are_torchs() -> None:
    weight = torch.zeros(4096 * 4096 + 8, dtype=torch.bfloat16, device="cuda")
    aligned, odd = weight[: 4096 * 4096].view(4096, 4096), weight[1 : 4096 * 4096 + 1].view(4096, 4096)
    assert any(isinstance(tile, HopperTile) for tile in tiles_by_rows(aligned))
    assert not any(isinstance(tile, HopperTile) for tile in tiles_by_rows(odd))


def test_what_the_kernel_does_not_take_is_refused() -> None:
    x, weight = inputs(4, 64, 128, torch.bfloat16)
    with pytest.raises(ValueError, match="must be contiguous"):
        few_rows_linear(x[:, ::2], weight[:, :64], tile=SMALL)
    with pytest.raises(ValueError, match="do not fit together"):
        few_rows_linear(x[:, :120], weight, tile=SMALL)
