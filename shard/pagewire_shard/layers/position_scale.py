"""Factors of queries that grow with their positions, so that attention stays sharp over long contexts."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PositionScaleSpec:
    """1 + beta * log(1 + floor((position + offset) / length)), as Llama 4 has it (arXiv:2501.19399)."""

    beta: float
    length: int
    """Positions for which the factor is the same."""
    offset: int = 0

    def of(self, positions: torch.Tensor) -> torch.Tensor:
        """[num_tokens] int64 -> [num_tokens, 1, 1] float32."""
        # In transformers' order, so that roundings are equal.
        scales = 1.0 + self.beta * torch.log(1.0 + torch.floor((positions + self.offset).float() / self.length))
        return scales[:, None, None]
