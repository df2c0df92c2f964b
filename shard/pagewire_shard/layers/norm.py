"""Norms: RMS and layer norm, alone or fused with adding a block's output to the residual stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pagewire_kernels.layer_norm import layer_norm
from pagewire_kernels.rms_norm import rms_norm

from pagewire_shard.layers.parameter import Parameter


class Norm(Protocol):
    """A norm over the last dimension. Inputs are not changed."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """norm(x)."""

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """norm(x + residual), and the sum itself."""


class RmsNorm:
    """x / rms(x) * weight (arXiv:1910.07467)."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rms_norm(x, self.weight, self.eps, residual)


class LayerNorm:
    """(x - mean(x)) / std(x) * weight, and + bias if there is one (arXiv:1607.06450)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
        self._weight = weight
        self._bias = bias
        self._eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self._weight, self._bias, self._eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return layer_norm(x, self._weight, self._bias, self._eps, residual)


@dataclass(frozen=True, slots=True)
class NormSpec:
    """A norm: its kind, and which tensors it has."""

    kind: Literal["rms", "layer"]
    eps: float
    """Added to the mean square (rms) or to the variance (layer)."""
    bias: bool = False
    """Whether a bias is added; layer norms only."""
    weight_offset: float = 0.0
    """Added to the stored weight."""
    float32_weight: bool = False
    """Whether the weight is float32 and scales before the result is rounded to the activations' dtype; otherwise it has
    that dtype and scales the rounded result. RMS norms only."""
    is_learned: bool = True
    """Whether checkpoints have its weight; otherwise that is 1, and there is no bias."""

    def parameter(self, width: int) -> Parameter:
        """The norm's parameter."""
        return Parameter("norm", (width,), bias=self.bias, is_stored=self.is_learned)

    def build(self, tensors: Mapping[str, torch.Tensor], scale: float = 1.0) -> Norm:
        """The norm with this weight and perhaps bias, each [width], multiplied by scale."""
        weight, bias = self.weight(tensors), tensors.get("bias")
        if scale != 1.0:
            weight, bias = weight * scale, None if bias is None else bias * scale
        return RmsNorm(weight, self.eps) if self.kind == "rms" else LayerNorm(weight, bias, self.eps)

    def weight(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the normalised values are multiplied by, [width]."""
        weight = tensors["weight"].float() if self.float32_weight else tensors["weight"]
        return weight + self.weight_offset if self.weight_offset else weight
