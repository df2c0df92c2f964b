"""A timed call beside its roofline."""

from collections.abc import Callable
from functools import cache

import torch

from gpu_parts.clock import Clock
from gpu_parts.part import Bench, Row


def row(
    bench: Bench,
    name: str,
    call: Callable[[], object],
    num_bytes: float,
    num_flops: float = 0.0,
    prepare: Callable[[], object] = lambda: None,
) -> Row:
    """Times a call that must move num_bytes (every input once, every output once) and do num_flops.

    prepare: runs before each call, outside the time.

    of_roofline: the time that the ceilings allow, over the time taken. of_copy: a copy that moves as many bytes, timed
    the same way, over the time taken; small copies reach less than large ones. None where operations decide.
    """
    assert bench.ceilings is not None
    timing = bench.clock.time(call, prepare)
    ceiling_s = bench.ceilings.seconds(num_bytes, num_flops)
    is_memory_bound = ceiling_s == num_bytes / bench.ceilings.copy_bytes_per_s
    return {
        "name": name,
        "median_us": timing.median_s * 1e6,
        "fastest_us": timing.fastest_s * 1e6,
        "gbytes_per_s": num_bytes / timing.median_s / 1e9,
        "tflops": num_flops / timing.median_s / 1e12,
        "of_roofline": ceiling_s / timing.median_s,
        "of_copy": copy_s(bench.clock, bench.device, int(num_bytes)) / timing.median_s if is_memory_bound else None,
    }


@cache
def copy_s(clock: Clock, device: torch.device, num_bytes: int) -> float:
    """Seconds of a copy that reads and writes num_bytes together."""
    source = torch.empty(max(1, num_bytes // 2), dtype=torch.int8, device=device).random_(0, 100)
    target = torch.empty_like(source)
    return clock.time(lambda: target.copy_(source)).median_s
