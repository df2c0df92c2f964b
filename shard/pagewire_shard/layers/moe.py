"""The mixture of experts: a router, and the kernel that sends each token through the experts it chooses."""

import torch
from pagewire_kernels.fused_moe import fused_moe

from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.spec import MoeSpec


class MixtureOfExperts:
    """The sum of the chosen experts' outputs, weighted by the router's softmax."""

    def __init__(self, spec: MoeSpec, router: Linear, up: torch.Tensor, down: torch.Tensor) -> None:
        self._top_k = spec.top_k
        self._renormalise = spec.renormalise
        self._router = router
        self._up = up.view(spec.num_experts, -1, up.shape[1])
        self._down = down.view(spec.num_experts, -1, down.shape[1])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        return fused_moe(x, self._router(x), self._up, self._down, top_k=self._top_k, renormalise=self._renormalise)
