"""How an expert combines its gate with what it gates, beside SwiGLU."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """gpt-oss's gate: gate * sigmoid(alpha * gate) * (up + 1), where gate is at most limit and up within +-limit."""

    alpha: float
    limit: float


def apply_gate(gate: torch.Tensor, up: torch.Tensor, clamp: ClampedSwiglu | None) -> torch.Tensor:
    """silu(gate) * up, or the clamped form: [..., size] each."""
    if clamp is None:
        return F.silu(gate) * up
    gate, up = gate.clamp(max=clamp.limit), up.clamp(-clamp.limit, clamp.limit)
    return gate * torch.sigmoid(clamp.alpha * gate) * (up + 1)
