"""Which products serve half-precision weights on this CPU, decided by measuring them once at start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from time import thread_time

import torch
from pagewire_kernels.cpu.threads import one_thread
from pagewire_kernels.packed_linear import has_instructions

from pagewire_shard.layers.linear import (
    LinearFactory,
    OneDnnBfloat16Linear,
    float16_packed_linear,
    has_fbgemm,
    has_onednn,
    packed_bfloat16_linear,
)

SHAPE = (2048, 1024)
"""Output and input features of the product that is timed; its weight is larger than most second-level caches."""
ROWS = (1, 16, 64)
"""Few rows are bound by reading the weight, many by arithmetic."""
NUM_ROUNDS = 5
"""Rounds of which the fastest counts. Contenders take turns within a round, so that a disturbance hits all of them.
Each runs on one thread, and processor time counts, not the clock's, so that other processes hardly matter."""
MIN_GAIN = 1.15
"""bfloat16 products round activations, so they have to be faster by this much, as the geometric mean over ROWS."""


@dataclass(frozen=True, slots=True)
class HalfProducts:
    """The products that were chosen."""

    name: str
    dtype: torch.dtype
    """Element type to which they round weights and activations: bfloat16, or float16 for weights alone."""
    factory: LinearFactory
    reason: str
    """What was measured, for the start line."""


def _contenders() -> dict[str, LinearFactory]:
    """The bfloat16 products that this processor has instructions for."""
    contenders: dict[str, LinearFactory] = {}
    if has_instructions(torch.bfloat16):
        contenders["AVX512-BF16"] = packed_bfloat16_linear
    if torch.cpu._is_amx_tile_supported() and has_onednn() and _is_independent_of_rows(OneDnnBfloat16Linear):
        contenders["AMX"] = OneDnnBfloat16Linear
    return contenders


@cache
def half_products() -> HalfProducts:
    """The products for bfloat16 weights on this CPU. Measures once, for about 30 ms."""
    contenders = _contenders()
    if not contenders:
        return _float16_packed("this processor has neither AVX512-BF16 nor AMX")
    if not has_fbgemm():
        name, factory = next(iter(contenders.items()))
        return HalfProducts(name, torch.bfloat16, factory, "this build of torch has no float16-packed products")
    return choose(contenders, measure({"float16": float16_packed_linear, **contenders}))


def choose(contenders: Mapping[str, LinearFactory], seconds: Mapping[str, Mapping[int, float]]) -> HalfProducts:
    """Compares times, by name and number of rows, with those of "float16"."""
    gains = {name: [seconds["float16"][rows] / seconds[name][rows] for rows in ROWS] for name in contenders}
    best = max(gains, key=lambda name: prod(gains[name]))
    figures = ", ".join(f"{gain:.2f}" for gain in gains[best])
    reason = (
        f"{best} took turns with float16-packed weights at {', '.join(map(str, ROWS))} rows: {figures} times as fast"
    )
    if prod(gains[best]) ** (1 / len(ROWS)) < MIN_GAIN:
        return _float16_packed(reason)
    return HalfProducts(best, torch.bfloat16, contenders[best], reason)


def measure(factories: Mapping[str, LinearFactory]) -> dict[str, dict[int, float]]:
    """Seconds of one product, by name and number of rows."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator)
    inputs = {rows: torch.randn(rows, SHAPE[1], generator=generator) for rows in ROWS}
    linears = {name: factory(weight, None) for name, factory in factories.items()}
    best = {name: dict.fromkeys(ROWS, float("inf")) for name in linears}
    with one_thread():
        for _ in range(NUM_ROUNDS):
            for rows, x in inputs.items():
                for name, linear in linears.items():
                    best[name][rows] = min(best[name][rows], _time(partial(linear, x)))
    return best


def _time(call: Callable[[], object]) -> float:
    start = thread_time()
    call()
    return thread_time() - start


def _is_independent_of_rows(factory: LinearFactory) -> bool:
    """Whether a row's product has the same bits alone and beside others."""
    generator = torch.Generator().manual_seed(0)
    linear, x = factory(torch.randn(SHAPE, generator=generator), None), torch.randn(64, SHAPE[1], generator=generator)
    whole = linear(x)
    return all(torch.equal(linear(x[:rows]), whole[:rows]) for rows in (1, 2, 5, 16, 33))


def _float16_packed(reason: str) -> HalfProducts:
    return HalfProducts("float16-packed", torch.float16, float16_packed_linear, reason)
