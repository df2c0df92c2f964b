"""How an expert activates its first product: mostly a gate beside what it gates."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """gpt-oss's gate: gate * sigmoid(alpha * gate) * (up + 1), where gate is at most limit and up within +-limit."""

    alpha: float
    limit: float


Gate = Literal["silu", "gelu_tanh", "relu2"] | ClampedSwiglu
"""silu(gate) * up, the same with the tanh form of GELU, or the clamped form; relu2 has no gate: relu(up)**2."""


def num_parts(kind: Gate) -> int:
    """Matrices in an expert's first product."""
    return 1 if kind == "relu2" else 2


def activate(projected: torch.Tensor, kind: Gate) -> torch.Tensor:
    """An expert's first product, [..., num_parts * size], gate before up -> [..., size]."""
    if kind == "relu2":
        return torch.relu(projected).square()
    gate, up = projected.chunk(2, dim=-1)
    return apply_gate(gate, up, kind)


def apply_gate(
    gate: torch.Tensor, up: torch.Tensor, kind: Literal["silu", "gelu_tanh"] | ClampedSwiglu
) -> torch.Tensor:
    """[..., size] each -> [..., size]."""
    if kind == "silu":
        return F.silu(gate) * up
    if kind == "gelu_tanh":
        return F.gelu(gate, approximate="tanh") * up
    gate, up = gate.clamp(max=kind.limit), up.clamp(-kind.limit, kind.limit)
    return gate * torch.sigmoid(kind.alpha * gate) * (up + 1)
