"""How an expert combines its gate with what it gates."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """gpt-oss's gate: gate * sigmoid(alpha * gate) * (up + 1), where gate is at most limit and up within +-limit."""

    alpha: float
    limit: float


Gate = Literal["silu", "gelu_tanh"] | ClampedSwiglu
"""silu(gate) * up, the same with the tanh form of GELU, or the clamped form."""


def apply_gate(gate: torch.Tensor, up: torch.Tensor, kind: Gate) -> torch.Tensor:
    """[..., size] each -> [..., size]."""
    if kind == "silu":
        return F.silu(gate) * up
    if kind == "gelu_tanh":
        return F.gelu(gate, approximate="tanh") * up
    gate, up = gate.clamp(max=kind.limit), up.clamp(-kind.limit, kind.limit)
    return gate * torch.sigmoid(kind.alpha * gate) * (up + 1)
