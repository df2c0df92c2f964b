"""Matrix products with a layer's weights: packed on a CPU, plain elsewhere; few_rows.py has a GPU's.

A factory takes a weight and keeps only what its product needs; after packing the caller drops the weight. On a CPU
without half-precision arithmetic a packed float32 product takes a third of F.linear's time at 1 to 64 rows and less
than half at 512; weights packed as float16 with float32 activations halve the memory and are faster still where
reading weights dominates, up to 32 rows. Accumulation is in float32 either way.

A tensor-parallel layer would be a further Linear that wraps one of these and a collective.
"""

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

PACKED_NUM_ROWS = 64
"""Rows oneDNN is told to expect. The layout it picks is within 5 % of the best at 1 to 512 rows; packed for 1 row it is
half as fast at 4, and packed for 16 or 512 it gains nothing anywhere: one pack serves decode and prefill."""

FLOAT16_MAX = torch.finfo(torch.float16).max


class Linear(Protocol):
    """x @ weight.T + bias."""

    num_bytes: int
    """Memory the weight and bias take."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_rows, in_features] -> [num_rows, out_features], same dtype."""


class LinearFactory(Protocol):
    """Makes a Linear from a weight that the caller gives up."""

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """weight: [out_features, in_features], bias: [out_features], contiguous."""


class PlainLinear:
    """The weight as it is, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.num_bytes = weight.nbytes + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class OneDnnLinear:
    """Float32 weight in oneDNN's blocked layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, PACKED_NUM_ROWS)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self.num_bytes = weight.nbytes + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._run(x, self._packed, self._bias, "none", [], "")
        return output


class Float16PackedLinear:
    """Weight packed as float16 by FBGEMM, activations and accumulation in float32. The weight comes as float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.quantized.linear_prepack_fp16.default(weight, bias)
        self._run = torch.ops.quantized.linear_dynamic_fp16.default
        self.num_bytes = weight.nbytes // 2 + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._run(x, self._packed)
        return output


def float32_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The fastest Linear on this CPU that keeps float32 weights."""
    return OneDnnLinear(weight, bias) if has_onednn() else PlainLinear(weight, bias)


def float16_packed_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The fastest Linear on this CPU for weights that float16 represents; float32 for those it does not.

    bfloat16 has float16's size and float32's range: a weight beyond 65,504 would be clipped.
    """
    if has_fbgemm() and fits_float16(weight):
        return Float16PackedLinear(weight, bias)
    return float32_linear(weight, bias)


def fits_float16(weight: torch.Tensor) -> bool:
    """Whether no element is beyond float16's range."""
    low, high = weight.aminmax()
    return max(-low.item(), high.item()) <= FLOAT16_MAX


@cache
def has_onednn() -> bool:
    """Whether torch was built with oneDNN and its packed linear operators work here."""
    return _works(OneDnnLinear)


@cache
def has_fbgemm() -> bool:
    """Whether torch was built with FBGEMM and its float16 linear operators work here."""
    return _works(Float16PackedLinear)


def _works(factory: LinearFactory) -> bool:
    identity = torch.eye(16)
    try:
        return torch.equal(factory(identity, None)(identity), identity)
    except (AttributeError, RuntimeError):
        # The operator is missing from this build, or refuses this processor.
        return False
