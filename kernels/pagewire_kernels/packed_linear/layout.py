"""The layout of a packed weight: panels of columns, each a contiguous stream from the first input feature to the last.

A panel holds PANEL_COLUMNS output features. Step by step along the input features it has one element of each column
(float32), or two neighbouring ones (bfloat16, as the processor's dot product of pairs takes them). Missing columns and
features are zero.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

PANEL_COLUMNS = 32
PANELS_AT_A_TIME = 2
"""The kernel multiplies by two panels at a time: neighbours, or a gate's and the one that it multiplies."""
FEATURES_PER_STEP = {torch.float32: 1, torch.bfloat16: 2}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight of [out_features, in_features] in panels."""

    panels: torch.Tensor
    """[num_panels, num_steps, PANEL_COLUMNS, features of a step], contiguous; float32 or bfloat16."""
    out_features: int
    in_features: int

    @property
    def can_be_gated(self) -> bool:
        """Whether both halves of the output features are whole panels, so that one can gate the other."""
        return self.out_features % (2 * PANEL_COLUMNS) == 0


def pack(weight: torch.Tensor, dtype: torch.dtype) -> PackedWeight:
    """Packs a weight of [out_features, in_features], rounded to dtype: float32 or bfloat16."""
    out_features, in_features = weight.shape
    per_step = FEATURES_PER_STEP[dtype]
    padded = F.pad(weight.to(dtype), (0, -in_features % per_step, 0, -out_features % PANEL_COLUMNS))
    steps = padded.view(-1, PANEL_COLUMNS, padded.shape[1] // per_step, per_step)
    return PackedWeight(steps.transpose(1, 2).contiguous(), out_features, in_features)


def unpack(weight: PackedWeight) -> torch.Tensor:
    """The weight as it was packed: [out_features, in_features], in the panels' dtype."""
    columns = weight.panels.transpose(1, 2).flatten(0, 1).flatten(1)
    return columns[: weight.out_features, : weight.in_features]
