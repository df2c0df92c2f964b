"""Products of 1, 4 and 16 rows with the weights of Llama-3.1-8B: the product that is served, and torch's.

The roofline's bytes are the weight's. Calls take turns with weights that are not in the cache.
"""

from collections.abc import Iterator
from functools import partial
from itertools import cycle

import torch
from pagewire_kernels.activation import silu_and_mul
from pagewire_kernels.few_rows_linear import few_rows_linear, tiles_by_rows

from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import MIN_COPIES, num_copies, row

WEIGHTS = {
    "qkv": (6144, 4096, False),
    "o": (4096, 4096, False),
    "gate_up": (28_672, 4096, True),
    "down": (4096, 14_336, False),
    "lm_head": (128_256, 4096, False),
}
"""Rows, columns, and whether the first half of the rows is a gate."""


def run(bench: Bench) -> list[Row]:
    """Times every weight at every number of rows, by torch and, where the table has a tile, by the kernel."""
    rows: list[Row] = []
    for name, (height, width, gated) in WEIGHTS.items():
        height, width = bench.size(height, height // 128), bench.size(width, width // 128)
        copies = bench.size(num_copies(height * width * bench.dtype.itemsize), MIN_COPIES)
        weights = [
            torch.randn(height, width, dtype=bench.dtype, device=bench.device) * width**-0.5 for _ in range(copies)
        ]
        for num_rows in (1, 4, 16):
            rows.extend(_rows(bench, f"{name}, {num_rows} rows", num_rows, weights, gated))
    return rows


def _rows(bench: Bench, name: str, num_rows: int, weights: list[torch.Tensor], gated: bool) -> Iterator[Row]:
    # Calls share x: it is small, and in a step it has just been written.
    x = torch.randn(num_rows, weights[0].shape[1], dtype=bench.dtype, device=bench.device)
    turn = cycle(weights)
    num_bytes = weights[0].nbytes
    yield row(bench, f"torch, {name}", lambda: partial(_torch, x, next(turn), gated), num_bytes)
    tiles = tiles_by_rows(weights[0], gated=gated)
    if tiles and (tile := tiles[num_rows]) is not None:
        yield row(
            bench,
            f"few_rows_linear, {name}",
            lambda: partial(few_rows_linear, x, next(turn), gated=gated, tile=tile),
            num_bytes,
        )


def _torch(x: torch.Tensor, weight: torch.Tensor, gated: bool) -> torch.Tensor:
    y = torch.nn.functional.linear(x, weight)
    return silu_and_mul(y) if gated else y


PARTS = (Part("kernels:few_rows", run),)
