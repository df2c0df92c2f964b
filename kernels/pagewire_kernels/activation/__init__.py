"""Activations: a gate's activation times the other half, xIELU, which has weights of its own, and the sigmoid."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch

from pagewire_kernels.activation import reference
from pagewire_kernels.activation.reference import XIELU_LINEAR

__all__ = ["XIELU_LINEAR", "gelu_and_mul", "sigmoid", "silu_and_mul", "xielu"]


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up.

    Args:
        x: [num_tokens, 2 * intermediate], gate then up; rows contiguous.

    Returns:
        [num_tokens, intermediate], contiguous.

    Source: SwiGLU, arXiv:2002.05202.
    """
    if x.is_cpu and x.dtype is torch.float32:
        return _cpu()(x, "silu")
    if x.is_cuda:
        return _cuda()(x, "silu")
    return reference.silu_and_mul(x)


def gelu_and_mul(x: torch.Tensor, approximate: Literal["none", "tanh"] = "none") -> torch.Tensor:
    """gelu(gate) * up; approximate as in torch.nn.functional.gelu.

    Args:
        x: [num_tokens, 2 * intermediate], gate then up; rows contiguous.
        approximate: "tanh" for the approximation by a hyperbolic tangent.

    Returns:
        [num_tokens, intermediate], contiguous.

    Source: GEGLU, arXiv:2002.05202.
    """
    if x.is_cpu and x.dtype is torch.float32 and approximate == "tanh":
        return _cpu()(x, "gelu_tanh")
    if x.is_cuda:
        return _cuda()(x, "gelu" if approximate == "none" else "gelu_tanh")
    return reference.gelu_and_mul(x, approximate)


def xielu(x: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """xIELU: a parabola above 0 and an exponential below, both beside XIELU_LINEAR * x.

    Args:
        x: [num_tokens, intermediate], rows contiguous.
        slopes: [2] float32 on x's device: the factor of x**2 above 0, and that of exp(x) - 1 - x below.

    Returns:
        [num_tokens, intermediate], x's dtype, contiguous.

    Source: arXiv:2411.13010.
    """
    if x.is_cuda:
        from pagewire_kernels.activation.triton import xielu as triton_kernel

        return triton_kernel(x, slopes)
    return reference.xielu(x, slopes)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-x)) of a tensor of any shape; on a CPU an element's bits depend on the element alone.

    Returns:
        x's shape and dtype.
    """
    if x.is_cpu and x.dtype is torch.float32:
        return _cpu_sigmoid()(x.clone(memory_format=torch.contiguous_format))
    return torch.sigmoid(x)


@cache
def _cpu_sigmoid() -> Callable[[torch.Tensor], torch.Tensor]:
    from pagewire_kernels.cpu.elementwise import sigmoid_

    return sigmoid_


@cache
def _cpu() -> Callable[[torch.Tensor, str], torch.Tensor]:
    from pagewire_kernels.activation import cpu

    return cpu.activate_and_mul


@cache
def _cuda() -> Callable[[torch.Tensor, str], torch.Tensor]:
    from pagewire_kernels.activation.triton import activate_and_mul as triton_kernel

    return triton_kernel
