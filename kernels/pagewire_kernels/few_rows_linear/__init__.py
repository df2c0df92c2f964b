"""Products of a few rows with a weight. Reading the weight takes nearly all of their time."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.few_rows_linear import reference
from pagewire_kernels.tuning.few_rows_linear import MAX_ROWS, FewRowsTile, few_rows_config

__all__ = ["few_rows_linear", "tiles_by_rows"]


def few_rows_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    gated: bool = False,
    tile: FewRowsTile | None = None,
) -> torch.Tensor:
    """Returns x @ weight.T + bias. With gated: silu of its first half of columns times the other half, in one launch.

    Args:
        x: [num_rows, in_features], at most MAX_ROWS rows, each contiguous.
        weight: [out_features, in_features], contiguous, x's dtype; gated: [2 * out_features, in_features], gate above
            up. It may be read while the kernel launched last still runs: no kernel on its way may write it.
        bias: one element for each row of the weight.
        tile: GPU only; None: a tile that serves any number of rows but was not measured.

    Returns:
        [num_rows, out_features], x's dtype, contiguous. Sums are taken in float32, in an order that depends on the tile
        and on nothing else.

    Source: reference.py is the definition of correct.
    """
    return _backend(x.device.type)(x, weight, bias, gated, tile)


def tiles_by_rows(weight: torch.Tensor, *, gated: bool = False) -> tuple[FewRowsTile | None, ...]:
    """The tuning table's choice for each number of rows, 0 to MAX_ROWS. None: torch's product is not slower, or was not
    compared with on this GPU. Empty if it is None everywhere."""
    if not (weight.is_cuda and weight.is_contiguous() and weight.dtype in (torch.bfloat16, torch.float16)):
        return ()
    major, minor = torch.cuda.get_device_capability(weight.device)
    gpu, element_bytes = 10 * major + minor, weight.element_size()
    measured = (few_rows_config(gpu, element_bytes, gated, rows, *weight.shape) for rows in range(1, MAX_ROWS + 1))
    tiles = (None, *(config.tile for config in measured))
    return tiles if any(tiles) else ()


@cache
def _backend(device_type: str) -> Callable[..., torch.Tensor]:
    if device_type == "cuda":
        from pagewire_kernels.few_rows_linear import triton

        return triton.few_rows_linear
    return reference.few_rows_linear
