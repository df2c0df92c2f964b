"""Products of a few rows with a weight. Reading the weight takes nearly all of their time."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch

from pagewire_kernels.few_rows_linear import reference
from pagewire_kernels.tuning.few_rows_linear import MAX_ROWS, HopperTile, Tile, few_rows_config

__all__ = ["few_rows_linear", "tiles_by_rows"]


def few_rows_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    gated: bool = False,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Returns x @ weight.T + bias. With gated: silu of its first half of columns times the other half, in one launch.

    Args:
        x: [num_rows, in_features], each row contiguous; at most 16 rows without a HopperTile.
        weight: [out_features, in_features], contiguous, x's dtype; gated: [2 * out_features, in_features], gate above
            up. It may be read while the kernel launched last still runs: no kernel on its way may write it.
        bias: one element for each row of the weight.
        tile: GPU only, which also chooses the kernel; None: one that serves up to 16 rows but was not measured. With
            a HopperTile, rows and weight begin at multiples of 16 bytes.

    Returns:
        [num_rows, out_features], x's dtype, contiguous. Sums are taken in float32, in an order that depends on the tile
        and on nothing else.

    Source: reference.py is the definition of correct.
    """
    if x.is_cuda and isinstance(tile, HopperTile):
        return _hopper().few_rows_linear(x, weight, bias, gated, tile)  # type: ignore[no-any-return]
    return _backend(x.device.type)(x, weight, bias, gated, tile)


def tiles_by_rows(weight: torch.Tensor, *, gated: bool = False) -> tuple[Tile | None, ...]:
    """The tuning table's choice for each number of rows, 0 to MAX_ROWS. None: torch's product is not slower, or was not
    compared with on this GPU. Empty if it is None everywhere."""
    if not (weight.is_cuda and weight.is_contiguous() and weight.dtype in (torch.bfloat16, torch.float16)):
        return ()
    major, minor = torch.cuda.get_device_capability(weight.device)
    gpu, element_bytes = 10 * major + minor, weight.element_size()
    measured = (few_rows_config(gpu, element_bytes, gated, rows, *weight.shape) for rows in range(1, MAX_ROWS + 1))
    tiles = (None, *(config.tile for config in measured))
    if any(isinstance(tile, HopperTile) for tile in tiles) and not _serves_on_hopper(weight):
        tiles = tuple(None if isinstance(tile, HopperTile) else tile for tile in tiles)
    return tiles if any(tiles) else ()


def _serves_on_hopper(weight: torch.Tensor) -> bool:
    """Whether the installed Triton has Gluon as the kernel needs it, and the kernel takes the weight."""
    try:
        return bool(_hopper().prepare(weight))
    except (ImportError, AttributeError):
        return False


def _hopper() -> Any:
    return import_module("pagewire_kernels.few_rows_linear.hopper")


@cache
def _backend(device_type: str) -> Callable[..., torch.Tensor]:
    if device_type == "cuda":
        from pagewire_kernels.few_rows_linear import triton

        return triton.few_rows_linear
    return reference.few_rows_linear
