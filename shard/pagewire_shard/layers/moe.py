"""The mixture of experts: a router, and the chosen experts, by one kernel on a GPU and by products on a CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from pagewire_kernels.activation import sigmoid
from pagewire_kernels.fused_moe import Gate, RouterSpec, activate, fused_moe, num_parts, route

from pagewire_shard.layers.block import FeedForward
from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.mlp import Mlp, MlpSpec, gated
from pagewire_shard.layers.norm import Norm, NormSpec
from pagewire_shard.layers.parameter import Parameter, Role
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts in place of a dense feed-forward block; as a rule each expert is gated."""

    num_experts: int
    intermediate_size: int
    """Intermediate size of each expert."""
    router: RouterSpec
    has_correction: bool = False
    """Whether the checkpoint has a correction of each expert's score, which counts for the choice alone."""
    float32_router: bool = False
    """The router's product is made in float32 whatever the model's element type, because small differences between
    experts decide."""
    bias: bool = False
    """Whether router and experts have biases."""
    gate: Gate = "silu"
    """How every expert activates its first product, which mostly has a gate."""
    latent_size: int = 0
    """The experts' inputs and outputs are of this size, projected from and to the hidden size; 0: there is no such
    projection."""
    expert_scales: bool = False
    """Whether the checkpoint has a factor of each expert's weight."""
    first_held: int = 0
    """The first expert that is held."""
    num_held: int | None = None
    """Experts that are held; those that the router chooses of the others add nothing. None: all."""

    @property
    def active_share(self) -> float:
        """See FeedForwardSpec."""
        return self.router.top_k / self.num_experts

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See FeedForwardSpec."""
        # Gate and up of the first expert, then of the second, and so on.
        num_held = self.held_experts
        up_parts = (self.intermediate_size,) * (num_parts(self.gate) * num_held)
        size = self.latent_size or hidden_size
        router_role: Role = "router" if self.float32_router else "linear"
        parameters = {
            "router": Parameter(router_role, (self.num_experts,), hidden_size, self.bias),
            "experts_up": Parameter("experts", up_parts, size, self.bias),
            "experts_down": Parameter("experts", (size,) * num_held, self.intermediate_size, self.bias),
        }
        if self.latent_size:
            parameters["latent_in"] = Parameter("linear", (size,), hidden_size)
            parameters["latent_out"] = Parameter("linear", (hidden_size,), size)
        if self.has_correction:
            parameters["correction"] = Parameter("correction", (self.num_experts,))
        if self.expert_scales:
            parameters["expert_scales"] = Parameter("vector", (self.num_experts,))
        return parameters

    @property
    def held_experts(self) -> int:
        """Number of experts that are held."""
        return self.num_experts if self.num_held is None else self.num_held

    def for_rank(self, ranks: Ranks) -> "MoeSpec":
        """See Shared: each rank has some of the experts, or some of every expert's inner units."""
        if ranks.by_expert:
            num_held = ranks.share(self.num_experts, "experts")
            return replace(self, first_held=ranks.rank * num_held, num_held=num_held)
        return replace(self, intermediate_size=ranks.share(self.intermediate_size, "units of each expert"))

    def build(self, weights: LayerWeights) -> "Mixture":
        """See FeedForwardSpec."""
        return weights.summed(self.build_partial(weights))

    def build_partial(self, weights: LayerWeights) -> "Mixture":
        """The block whose outputs are still to be summed over all ranks."""
        router = weights.linear("router")
        correction = weights.tensors("correction")["weight"] if self.has_correction else None
        scales = weights.tensors("expert_scales")["weight"] if self.expert_scales else None
        mixture: Mixture
        if weights.weights.precision.device.type == "cpu":
            ups = weights.expert_linears("experts_up", self.held_experts)
            downs = weights.expert_linears("experts_down", self.held_experts)
            mixture = MixtureOfLinears(self, router, correction, scales, ups, downs)
        else:
            mixture = MixtureOfExperts(
                self, router, correction, scales, weights.tensors("experts_up"), weights.tensors("experts_down")
            )
        if not self.latent_size:
            return mixture
        return LatentMixture(mixture, weights.linear("latent_in"), weights.linear("latent_out"))


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

    def for_rank(self, ranks: Ranks) -> "SharedExpertSpec":
        """See Shared."""
        return replace(self, moe=self.moe.for_rank(ranks), shared=self.shared.for_rank(ranks))

    def build(self, weights: LayerWeights) -> FeedForward:
        """See FeedForwardSpec."""
        experts = self.moe.build_partial(weights)
        shared = Mlp(self.shared, weights.linear("shared_up"), weights.partial_linear("shared_down"))
        if not self.is_weighted:
            return weights.summed(lambda x: experts(x) + shared(x))
        weight = weights.linear("shared_weight")
        return weights.summed(lambda x: experts(x) + shared(x) * sigmoid(weight(x)))


class Mixture(Protocol):
    """A mixture of experts."""

    def __call__(self, x: torch.Tensor, routed_by: torch.Tensor | None = None) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden].

        routed_by: What the router scores, of the same shape; None: x.
        """


@dataclass(frozen=True, slots=True)
class ParallelExpertsSpec:
    """A dense block and a mixture side by side, whose inputs and outputs have norms of their own (Gemma 4).

    Both are given the residual stream; what they yield is added.
    """

    dense: MlpSpec
    moe: MoeSpec
    norm: NormSpec

    @property
    def active_share(self) -> float:
        """See FeedForwardSpec."""
        return self.moe.active_share

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See FeedForwardSpec."""
        norms = ("feed_forward_norm", "dense_out_norm", "router_norm", "experts_norm", "experts_out_norm")
        return {
            **{name: self.norm.parameter(hidden_size) for name in norms},
            **self.dense.parameters(hidden_size),
            **self.moe.parameters(hidden_size),
        }

    def for_rank(self, ranks: Ranks) -> "ParallelExpertsSpec":
        """See Shared."""
        return replace(self, dense=self.dense.for_rank(ranks), moe=self.moe.for_rank(ranks))

    def build(self, weights: LayerWeights) -> FeedForward:
        """See FeedForwardSpec."""

        def norm(name: str) -> Norm:
            return self.norm.build(weights.tensors(name))

        dense, dense_in, dense_out = self.dense.build(weights), norm("feed_forward_norm"), norm("dense_out_norm")
        experts, experts_in, experts_out = self.moe.build(weights), norm("experts_norm"), norm("experts_out_norm")
        router_weight = weights.tensors("router_norm")["weight"]
        router_norm = self.norm.build({"weight": router_weight * len(router_weight) ** -0.5})
        return lambda x: dense_out(dense(dense_in(x))) + experts_out(experts(experts_in(x), router_norm(x)))


class MixtureOfExperts:
    """The sum of the chosen experts' outputs, weighted by the router."""

    def __init__(
        self,
        spec: MoeSpec,
        router: Linear,
        correction: torch.Tensor | None,
        scales: torch.Tensor | None,
        up: Mapping[str, torch.Tensor],
        down: Mapping[str, torch.Tensor],
    ) -> None:
        self._spec = spec.router
        self._router = router
        self._correction = correction
        self._scales = scales
        self._first = spec.first_held
        self._up, self._down = (
            each["weight"].view(spec.held_experts, -1, each["weight"].shape[1]) for each in (up, down)
        )
        self._biases: tuple[torch.Tensor, torch.Tensor] | None = None
        if spec.bias:
            self._biases = up["bias"].view(spec.held_experts, -1), down["bias"].view(spec.held_experts, -1)
        self._gate = spec.gate

    def __call__(self, x: torch.Tensor, routed_by: torch.Tensor | None = None) -> torch.Tensor:
        """See Mixture."""
        return fused_moe(
            x,
            self._router(x if routed_by is None else routed_by),
            self._up,
            self._down,
            self._spec,
            self._correction,
            biases=self._biases,
            gate=self._gate,
            scales=self._scales,
            first_expert=self._first,
        )


class MixtureOfLinears:
    """The same with a Linear for each matrix: on a CPU, where packed products are faster and a token's bits do not
    depend on how many others chose its experts."""

    def __init__(
        self,
        spec: MoeSpec,
        router: Linear,
        correction: torch.Tensor | None,
        scales: torch.Tensor | None,
        ups: list[Linear],
        downs: list[Linear],
    ) -> None:
        self._spec = spec.router
        self._router = router
        self._correction = correction
        self._scales = None if scales is None else scales.float()
        self._experts = [(_gated(up, spec.gate), down) for up, down in zip(ups, downs, strict=True)]
        self._first = spec.first_held

    def __call__(self, x: torch.Tensor, routed_by: torch.Tensor | None = None) -> torch.Tensor:
        """See Mixture."""
        weights, experts = route(self._router(x if routed_by is None else routed_by), self._spec, self._correction)
        if self._scales is not None:
            weights = weights * self._scales[experts]
        out = torch.zeros_like(x)
        for index, (up, down) in enumerate(self._experts, self._first):
            tokens, places = torch.where(experts == index)
            if not len(tokens):
                continue
            weight = weights[tokens, places, None]
            if self._spec.weighs_inputs:
                out.index_add_(0, tokens, down(up(x[tokens] * weight)))
            else:
                out.index_add_(0, tokens, down(up(x[tokens])) * weight)
        return out


class LatentMixture:
    """A mixture of experts of another width than the residual stream; the router scores the stream itself."""

    def __init__(self, mixture: Mixture, to_latent: Linear, from_latent: Linear) -> None:
        self._mixture = mixture
        self._to_latent = to_latent
        self._from_latent = from_latent

    def __call__(self, x: torch.Tensor, routed_by: torch.Tensor | None = None) -> torch.Tensor:
        """See Mixture."""
        return self._from_latent(self._mixture(self._to_latent(x), x if routed_by is None else routed_by))


def _gated(up: Linear, kind: Gate) -> Callable[[torch.Tensor], torch.Tensor]:
    if kind == "silu" or kind == "gelu_tanh":
        return gated(up, kind)
    return lambda x: activate(up(x), kind)
