"""Activation functions by name: of one input, and of a gate that multiplies the value beside it. xIELU has learned
slopes."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pagewire_kernels.activation import XIELU_LINEAR, gelu_and_mul, silu_and_mul, xielu

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]

PLAIN: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "relu2": lambda x: torch.relu_(x).square_(),
    "silu": partial(F.silu, inplace=True),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""[..., size] -> [..., size]; may overwrite its input."""

GATED: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": partial(gelu_and_mul, approximate="tanh"),
}
"""[num_rows, 2 * size], gate and value side by side -> [num_rows, size]: activation(gate) * value."""


def xielu_of(positive: torch.Tensor, negative: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """xIELU with the slopes that a checkpoint's alpha_p and alpha_n stand for, one number each (arXiv:2411.13010)."""
    slopes = F.softplus(torch.cat([positive, negative]).float())
    slopes[1] += XIELU_LINEAR
    return partial(xielu, slopes=slopes)
