"""Measures the ceilings for the other parts in the same run: a large copy and a large product of matrices."""

from functools import partial

import torch

from gpu_parts.part import Bench, Ceilings, Part, Row


def measure(bench: Bench) -> Ceilings:
    """Copies and multiplies random data, because a GPU is faster on zeros."""
    num_elements = bench.size(2 << 30, 1 << 20)
    source = torch.empty(num_elements, dtype=bench.dtype, device=bench.device).normal_()
    target = torch.empty_like(source)
    copy = bench.clock.time(partial(target.copy_, source))
    n = bench.size(8192, 256)
    left, right = (torch.randn(n, n, dtype=bench.dtype, device=bench.device) for _ in range(2))
    product = bench.clock.time(partial(torch.matmul, left, right))
    return Ceilings(2 * source.nbytes / copy.median_s, 2 * n**3 / product.median_s)


def run(bench: Bench) -> list[Row]:
    """Measures, and leaves the result to the parts that follow."""
    bench.ceilings = measured = measure(bench)
    return [
        {"name": "copy", "rate": measured.copy_bytes_per_s, "unit": "bytes/s"},
        {"name": f"matmul, {bench.dtype}".replace("torch.", ""), "rate": measured.matmul_flops_per_s, "unit": "FLOP/s"},
    ]


PARTS = (Part("ceilings", run),)
