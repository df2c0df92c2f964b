"""The dense feed-forward block."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pagewire_shard.layers.activation import GATED, PLAIN, Activation, xielu_of
from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A dense feed-forward block."""

    intermediate_size: int
    activation: Activation
    gated: bool
    """down(activation(gate(x)) * up(x)) rather than down(activation(up(x)))."""
    bias: bool
    gate_scale: float = 1.0
    """Multiplies the gate, before its activation."""
    output_scale: float = 1.0
    """Multiplies what the block yields."""

    @property
    def active_share(self) -> float:
        """See FeedForwardSpec."""
        return 1.0

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See FeedForwardSpec."""
        up_parts = (self.intermediate_size,) * (2 if self.gated else 1)
        slopes = ("xielu_positive", "xielu_negative") if self.activation == "xielu" else ()
        return {
            "up": Parameter("linear", up_parts, hidden_size, self.bias),
            "down": Parameter("linear", (hidden_size,), self.intermediate_size, self.bias),
            **{name: Parameter("vector", (1,)) for name in slopes},
        }

    def for_rank(self, ranks: Ranks) -> "MlpSpec":
        """See Shared: each rank has some of the inner units."""
        return replace(self, intermediate_size=ranks.share(self.intermediate_size, "units of the feed-forward block"))

    def build(self, weights: LayerWeights) -> "Mlp":
        """See FeedForwardSpec."""
        activate = None
        if self.activation == "xielu":
            activate = xielu_of(*(weights.tensors(f"xielu_{side}")["weight"] for side in ("positive", "negative")))
        return Mlp(self, weights.linear("up"), weights.linear("down"), activate)


class Mlp:
    """down(activation(up(x))); gated: up yields gate and value side by side."""

    def __init__(
        self,
        spec: MlpSpec,
        up: Linear,
        down: Linear,
        activate: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """activate: an activation with weights; None: the one that the spec names."""
        if spec.gate_scale != 1.0:
            self._activated_up = _scaled_gate(up, spec)
        elif spec.gated:
            self._activated_up = gated(up, spec.activation)
        else:
            self._activated_up = _activated(up, activate or PLAIN[spec.activation])
        self._down = down
        self._output_scale = spec.output_scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        out = self._down(self._activated_up(x))
        return out if self._output_scale == 1.0 else out.mul_(self._output_scale)


def gated(up: Linear, activation: Activation) -> Callable[[torch.Tensor], torch.Tensor]:
    """activation(gate) * value of a product that yields both side by side, in one pass where it can do that."""
    fused = up.gated(activation)
    if fused is not None:
        return fused
    activate = GATED[activation]
    return lambda x: activate(up(x))


def _scaled_gate(up: Linear, spec: MlpSpec) -> Callable[[torch.Tensor], torch.Tensor]:
    activate = GATED[spec.activation]

    def call(x: torch.Tensor) -> torch.Tensor:
        both = up(x)
        both[:, : spec.intermediate_size].mul_(spec.gate_scale)
        return activate(both)

    return call


def _activated(up: Linear, activate: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: activate(up(x))
