"""Mixture of experts: routing, the chosen experts' gated MLPs, and their weighted sum."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.fused_moe import reference
from pagewire_kernels.fused_moe.reference import route

__all__ = ["fused_moe", "route"]


def fused_moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    """Sends each token through its top_k most probable experts: sum of weight * down(silu(gate(x)) * up(x)).

    Args:
        x: [num_tokens, hidden], rows contiguous.
        router_logits: [num_tokens, num_experts], any float type; softmax and choice happen in float32.
        gate_up: [num_experts, 2 * intermediate, hidden], gate above up, contiguous, x's dtype.
        down: [num_experts, hidden, intermediate], contiguous, x's dtype.
        top_k: Experts of each token.
        renormalise: The chosen experts' weights are scaled to sum to 1.

    Returns:
        [num_tokens, hidden], x's dtype, contiguous.

    Source: Mixtral, arXiv:2401.04088, section 2.1; reference.py is the definition of correct.
    """
    return _backend(x.device.type)(x, router_logits, gate_up, down, top_k, renormalise)


@cache
def _backend(device_type: str) -> Callable[..., torch.Tensor]:
    if device_type == "cuda":
        from pagewire_kernels.fused_moe import triton

        return triton.fused_moe
    return reference.fused_moe
