"""The definition of fused_moe, and the routing of a mixture whose products are made one by one."""

import torch
import torch.nn.functional as F

from pagewire_kernels.fused_moe.gate import Gate, activate
from pagewire_kernels.fused_moe.router import RouterSpec


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
    """Computes one expert after another over the tokens that chose it; sums in float32 and rounds once."""
    weights, experts = route(router_logits, router, correction)
    if scales is not None:
        weights = weights * scales.float()[experts]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(len(gate_up)):
        tokens, places = torch.where(experts == first_expert + expert)
        if not len(tokens):
            continue
        up_bias, down_bias = (bias[expert] for bias in biases) if biases else (None, None)
        weight = weights[tokens, places, None]
        rows = x[tokens] * weight.to(x.dtype) if router.weighs_inputs else x[tokens]
        activated = activate(F.linear(rows, gate_up[expert], up_bias), gate)
        y = F.linear(activated, down[expert], down_bias).float()
        out.index_add_(0, tokens, y if router.weighs_inputs else y * weight)
    return out.to(x.dtype)


def route(
    router_logits: torch.Tensor, router: RouterSpec, correction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses the top_k best experts of each token, best first; the lower index first among equals.

    Args:
        router_logits: [num_tokens, num_experts], any float type; everything happens in float32.
        correction: [num_experts] float32, added to the scores for the choice alone; None: nothing is.

    Returns:
        Weights [num_tokens, top_k] float32 and the experts [num_tokens, top_k] int64.
    """
    logits = router_logits.float()
    if router.scoring == "sparsemixer":
        return _sparsemixer(logits, router)
    scores = logits.softmax(dim=-1) if router.scoring == "softmax" else logits.sigmoid()
    choice = scores if correction is None else scores + correction
    if router.num_groups > 1:
        choice = _within_best_groups(choice, router)
    experts = choice.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_k]
    weights = scores.gather(-1, experts)
    if router.renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=router.min_total)
    return (weights if router.scale == 1.0 else weights * router.scale), experts


def _within_best_groups(choice: torch.Tensor, router: RouterSpec) -> torch.Tensor:
    """[num_tokens, num_experts]: -inf for experts outside the token's top_groups groups."""
    groups = choice.view(len(choice), router.num_groups, -1)
    values = groups.sort(dim=-1, descending=True).values[..., : router.group_best].sum(dim=-1)
    chosen = values.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_groups]
    is_chosen = torch.zeros_like(values, dtype=torch.bool).scatter_(-1, chosen, True)
    return torch.where(is_chosen[..., None], groups, -torch.inf).flatten(-2)


def _sparsemixer(logits: torch.Tensor, router: RouterSpec) -> tuple[torch.Tensor, torch.Tensor]:
    left, weights, experts = logits, [], []
    for _ in range(router.top_k):
        best, expert = left.sort(dim=-1, descending=True, stable=True)
        best, expert = best[:, :1], expert[:, :1]
        is_far = (best - logits) / logits.abs().clamp(min=best) > router.tolerance
        weights.append(left.masked_fill(is_far, -torch.inf).softmax(dim=-1).gather(-1, expert))
        experts.append(expert)
        left = left.scatter(-1, expert, -torch.inf)
    return torch.cat(weights, dim=-1) * router.scale, torch.cat(experts, dim=-1)
