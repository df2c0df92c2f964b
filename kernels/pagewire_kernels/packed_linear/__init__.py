"""Products with a packed weight on a CPU, and what follows them in the same pass."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch

from pagewire_kernels.packed_linear import reference
from pagewire_kernels.packed_linear.layout import PackedWeight, pack, unpack

__all__ = ["GatedActivation", "PackedWeight", "has_instructions", "pack", "packed_linear", "unpack"]

GatedActivation = Literal["silu", "gelu_tanh"]


def packed_linear(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    activation: GatedActivation | None = None,
) -> torch.Tensor:
    """Returns x @ weight.T + bias, or activation(gate) * up of its two halves of columns, in one pass over the weight.

    A bfloat16 weight multiplies x rounded to bfloat16; sums are float32. The bits of a row depend on that row, the
    weight and the bias alone, not on the rows beside it or the number of threads.

    Args:
        x: [num_rows, in_features], float32.
        weight: [out_features, in_features] before it was packed.
        bias: [out_features], float32, contiguous.
        activation: Only for a weight whose `can_be_gated` is true: gate above up.

    Returns:
        [num_rows, out_features], with an activation half as many columns; float32, contiguous.

    Source: reference.py is the definition of correct.
    """
    return _backend(weight.panels.dtype)(x, weight, bias, activation)


@cache
def has_instructions(dtype: torch.dtype) -> bool:
    """Whether this processor has what the kernel for weights of this dtype needs: AVX-512, and for bfloat16
    AVX512-BF16. Without it, packed_linear is the slow reference."""
    from pagewire_kernels.cpu.simd import HAS_AVX512, HAS_AVX512_BF16

    return {torch.float32: HAS_AVX512, torch.bfloat16: HAS_AVX512_BF16}.get(dtype, False)


@cache
def _backend(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    if not has_instructions(dtype):
        return reference.packed_linear
    from pagewire_kernels.packed_linear import cpu

    return cpu.packed_linear
