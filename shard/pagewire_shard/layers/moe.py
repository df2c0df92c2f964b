"""The mixture of experts: a router, and the chosen experts, by one kernel on a GPU and by products on a CPU."""

from dataclasses import dataclass

import torch
from pagewire_kernels.fused_moe import RouterSpec, fused_moe, route

from pagewire_shard.layers.block import FeedForward
from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.mlp import Mlp, MlpSpec, gated
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts in place of a dense feed-forward block; each expert is gated by SiLU and has no biases."""

    num_experts: int
    intermediate_size: int
    """Intermediate size of each expert."""
    router: RouterSpec
    has_correction: bool = False
    """Whether the checkpoint has a correction of each expert's score, which counts for the choice alone."""
    float32_router: bool = False
    """The router's product is made in float32 whatever the model's element type, because small differences between
    experts decide."""

    @property
    def active_share(self) -> float:
        """See FeedForwardSpec."""
        return self.router.top_k / self.num_experts

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See FeedForwardSpec."""
        parameters = {
            "router": Parameter("router" if self.float32_router else "linear", (self.num_experts,), hidden_size),
            # Gate and up of the first expert, then of the second, and so on.
            "experts_up": Parameter("experts", (self.intermediate_size,) * (2 * self.num_experts), hidden_size),
            "experts_down": Parameter("experts", (hidden_size,) * self.num_experts, self.intermediate_size),
        }
        if self.has_correction:
            parameters["correction"] = Parameter("correction", (self.num_experts,))
        return parameters

    def build(self, weights: LayerWeights) -> FeedForward:
        """See FeedForwardSpec."""
        router = weights.linear("router")
        correction = weights.tensors("correction")["weight"] if self.has_correction else None
        if weights.weights.precision.device.type == "cpu":
            ups = weights.expert_linears("experts_up", self.num_experts)
            downs = weights.expert_linears("experts_down", self.num_experts)
            return MixtureOfLinears(self, router, correction, ups, downs)
        up, down = weights.tensors("experts_up")["weight"], weights.tensors("experts_down")["weight"]
        return MixtureOfExperts(self, router, correction, up, down)


@dataclass(frozen=True, slots=True)
class SharedExpertSpec:
    """A mixture of experts, and beside it an expert that every token goes through."""

    moe: MoeSpec
    shared: MlpSpec
    is_weighted: bool
    """The shared expert's output is multiplied by the sigmoid of a product of its own."""

    @property
    def active_share(self) -> float:
        """See FeedForwardSpec."""
        return self.moe.active_share

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See FeedForwardSpec."""
        shared = {f"shared_{name}": each for name, each in self.shared.parameters(hidden_size).items()}
        weight = {"shared_weight": Parameter("linear", (1,), hidden_size)} if self.is_weighted else {}
        return self.moe.parameters(hidden_size) | shared | weight

    def build(self, weights: LayerWeights) -> FeedForward:
        """See FeedForwardSpec."""
        experts = self.moe.build(weights)
        shared = Mlp(self.shared, weights.linear("shared_up"), weights.linear("shared_down"))
        if not self.is_weighted:
            return lambda x: experts(x) + shared(x)
        weight = weights.linear("shared_weight")
        return lambda x: experts(x) + shared(x) * torch.sigmoid(weight(x))


class MixtureOfExperts:
    """The sum of the chosen experts' outputs, weighted by the router."""

    def __init__(
        self, spec: MoeSpec, router: Linear, correction: torch.Tensor | None, up: torch.Tensor, down: torch.Tensor
    ) -> None:
        self._spec = spec.router
        self._router = router
        self._correction = correction
        self._up = up.view(spec.num_experts, -1, up.shape[1])
        self._down = down.view(spec.num_experts, -1, down.shape[1])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        return fused_moe(x, self._router(x), self._up, self._down, self._spec, self._correction)


class MixtureOfLinears:
    """The same with a Linear for each matrix: on a CPU, where packed products are faster and a token's bits do not
    depend on how many others chose its experts."""

    def __init__(
        self, spec: MoeSpec, router: Linear, correction: torch.Tensor | None, ups: list[Linear], downs: list[Linear]
    ) -> None:
        self._spec = spec.router
        self._router = router
        self._correction = correction
        self._experts = [(gated(up, "silu"), down) for up, down in zip(ups, downs, strict=True)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        weights, experts = route(self._router(x), self._spec, self._correction)
        out = torch.zeros_like(x)
        for index, (up, down) in enumerate(self._experts):
            tokens, places = torch.where(experts == index)
            if len(tokens):
                out.index_add_(0, tokens, down(up(x[tokens])) * weights[tokens, places, None])
        return out
