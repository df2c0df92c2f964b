"""The dense feed-forward block."""

from collections.abc import Callable

import torch

from pagewire_shard.layers.activation import GATED, PLAIN
from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.spec import MlpSpec


class Mlp:
    """down(activation(up(x))); gated: up yields gate and value side by side."""

    def __init__(self, spec: MlpSpec, up: Linear, down: Linear) -> None:
        self._activated_up = _activated_up(spec, up)
        self._down = down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        return self._down(self._activated_up(x))


def _activated_up(spec: MlpSpec, up: Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    fused = up.gated(spec.activation) if spec.gated else None
    if fused is not None:
        return fused
    activate = (GATED if spec.gated else PLAIN)[spec.activation]
    return lambda x: activate(up(x))
