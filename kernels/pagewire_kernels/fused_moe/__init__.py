"""Mixture of experts: routing, the chosen experts' gated MLPs, and their weighted sum."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.fused_moe import reference
from pagewire_kernels.fused_moe.gate import ClampedSwiglu, Gate, activate, num_parts
from pagewire_kernels.fused_moe.reference import route
from pagewire_kernels.fused_moe.router import RouterSpec

__all__ = ["ClampedSwiglu", "Gate", "RouterSpec", "activate", "fused_moe", "num_parts", "route"]


def fused_moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    router: RouterSpec,
    correction: torch.Tensor | None = None,
    biases: tuple[torch.Tensor, torch.Tensor] | None = None,
    gate: Gate = "silu",
    scales: torch.Tensor | None = None,
    first_expert: int = 0,
) -> torch.Tensor:
    """Sends each token through the experts that the router chooses: sum of weight * down(act(gate(x)) * up(x)).

    Args:
        x: [num_tokens, hidden], rows contiguous.
        router_logits: [num_tokens, num_experts], any float type; scores and choice are in float32.
        gate_up: [num_held, 2 * intermediate, hidden], gate above up, contiguous, x's dtype; of all experts, or of some
            that follow each other. Those of the others add nothing to the sum. Without a gate: intermediate rows.
        down: [num_held, hidden, intermediate], contiguous, x's dtype.
        router: How the experts are chosen and weighed.
        correction: [num_experts] float32, added to the scores for the choice alone (arXiv:2412.19437, section 2.1.2);
            None: nothing is.
        biases: Those of gate_up, [num_held, its rows], and of down, [num_held, hidden], contiguous, x's dtype;
            None: there are none.
        gate: How an expert activates its first product.
        scales: [num_experts], any float type, multiplies each expert's weight; None: nothing does.
        first_expert: The first one of those in gate_up.

    Returns:
        [num_tokens, hidden], x's dtype, contiguous.

    Source: Mixtral, arXiv:2401.04088, section 2.1; reference.py is the definition of correct.
    """
    compute = _backend(x.device.type)
    return compute(x, router_logits, gate_up, down, router, correction, biases, gate, scales, first_expert)


@cache
def _backend(device_type: str) -> Callable[..., torch.Tensor]:
    if device_type == "cuda":
        from pagewire_kernels.fused_moe import triton

        return triton.fused_moe
    return reference.fused_moe
