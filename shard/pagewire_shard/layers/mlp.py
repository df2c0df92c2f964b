"""The dense feed-forward block."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from pagewire_kernels.activation import gelu_and_mul, silu_and_mul

from pagewire_shard.layers.few_rows import SiluGated
from pagewire_shard.layers.linear import Linear, PlainLinear
from pagewire_shard.layers.spec import Activation, MlpSpec

PLAIN: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "silu": partial(F.silu, inplace=True),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}

GATED: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": partial(gelu_and_mul, approximate="tanh"),
}


class Mlp:
    """down(activation(up(x))); gated: up yields gate and value side by side."""

    def __init__(self, spec: MlpSpec, up: Linear, down: Linear) -> None:
        self._activated_up = _activated_up(spec, up)
        self._down = down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        return self._down(self._activated_up(x))


def _activated_up(spec: MlpSpec, up: Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    activate = (GATED if spec.gated else PLAIN)[spec.activation]
    if spec.gated and spec.activation == "silu" and isinstance(up, PlainLinear):
        return SiluGated(up, activate)
    return lambda x: activate(up(x))
