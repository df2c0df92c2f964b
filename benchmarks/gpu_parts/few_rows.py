"""Products of 1, 4 and 16 rows with the weights of Llama-3.1-8B: as served, and torch's beside it.

The roofline's bytes are the weight's. Each call is one product with a weight that is not in the cache.
"""

from collections.abc import Iterator
from functools import partial

import torch
from pagewire_kernels.activation import silu_and_mul
from pagewire_kernels.few_rows_linear import few_rows_linear, tiles_by_rows

from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import row

WEIGHTS = {
    "qkv": (6144, 4096, False),
    "o": (4096, 4096, False),
    "gate_up": (28_672, 4096, True),
    "down": (4096, 14_336, False),
    "lm_head": (128_256, 4096, False),
}
"""Rows, columns, and whether the first half of the rows is a gate."""


def few_rows_weights(bench: Bench) -> Iterator[tuple[int, int, bool]]:
    """The weights' shapes in this run."""
    for height, width, gated in WEIGHTS.values():
        yield bench.size(height, height // 128), bench.size(width, width // 128), gated


def run(bench: Bench) -> list[Row]:
    """Times every weight at every number of rows, by torch and, where the table has a tile, by the kernel."""
    rows = []
    for name, (height, width, gated) in zip(WEIGHTS, few_rows_weights(bench), strict=True):
        weight = torch.randn(height, width, dtype=bench.dtype, device=bench.device) * width**-0.5
        tiles = tiles_by_rows(weight, gated=gated)
        for num_rows in (1, 4, 16):
            x = torch.randn(num_rows, width, dtype=bench.dtype, device=bench.device)
            case = f"{name}, {num_rows} rows"
            rows.append(row(bench, f"torch, {case}", partial(_torch, x, weight, gated), weight.nbytes))
            if tiles and tiles[num_rows] is not None:
                call = partial(few_rows_linear, x, weight, gated=gated, tile=tiles[num_rows])
                rows.append(row(bench, f"few_rows_linear, {case}", call, weight.nbytes))
    return rows


def _torch(x: torch.Tensor, weight: torch.Tensor, gated: bool) -> torch.Tensor:
    y = torch.nn.functional.linear(x, weight)
    return silu_and_mul(y) if gated else y


PARTS = (Part("kernels:few_rows", run),)
