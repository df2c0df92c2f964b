"""The definition of fused_moe, and the routing of a mixture whose products are made one by one."""

import torch
import torch.nn.functional as F

from pagewire_kernels.fused_moe.gate import ClampedSwiglu, apply_gate


def fused_moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalise: bool,
    biases: tuple[torch.Tensor, torch.Tensor] | None = None,
    clamp: ClampedSwiglu | None = None,
) -> torch.Tensor:
    """Computes one expert after another over the tokens that chose it; sums in float32 and rounds once."""
    weights, experts = route(router_logits, top_k, renormalise)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(len(gate_up)):
        tokens, places = torch.where(experts == expert)
        if not len(tokens):
            continue
        up_bias, down_bias = (bias[expert] for bias in biases) if biases else (None, None)
        gate, up = F.linear(x[tokens], gate_up[expert], up_bias).chunk(2, dim=-1)
        y = F.linear(apply_gate(gate, up, clamp), down[expert], down_bias)
        out.index_add_(0, tokens, y.float() * weights[tokens, places, None])
    return out.to(x.dtype)


def route(router_logits: torch.Tensor, top_k: int, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses the top_k most probable experts of each token, best first; the lower index first among equals.

    Returns:
        [num_tokens, top_k] float32 weights, the softmax over all experts, scaled to sum to 1 if renormalise; and the
        experts [num_tokens, top_k] int64.
    """
    probabilities = router_logits.float().softmax(dim=-1)
    weights, experts = probabilities.sort(dim=-1, descending=True, stable=True)
    weights, experts = weights[:, :top_k], experts[:, :top_k]
    return (weights / weights.sum(dim=-1, keepdim=True) if renormalise else weights), experts
