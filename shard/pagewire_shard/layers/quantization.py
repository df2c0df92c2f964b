"""Quantization schemes: how the weights of matrix products are stored, and which Linear multiplies by them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.parameter import Parameter, TensorSpec, plain_tensors
from pagewire_shard.layers.precision import Precision


class QuantizationScheme(Protocol):
    """How parameters of role linear are stored."""

    def tensors(self, parameter: Parameter) -> dict[str, TensorSpec]:
        """The tensors that the parameter is stored as, by the last component of their names in a checkpoint."""

    def linear(self, parameter: Parameter, tensors: Mapping[str, torch.Tensor]) -> Linear:
        """The product with these tensors. The caller no longer uses them, so a packed weight is freed."""


@dataclass(frozen=True, slots=True)
class Unquantized:
    """Weight and bias in floating point."""

    precision: Precision

    def tensors(self, parameter: Parameter) -> dict[str, TensorSpec]:
        """See QuantizationScheme."""
        return plain_tensors(parameter, self.precision.linear_weights, self.precision.activations)

    def linear(self, parameter: Parameter, tensors: Mapping[str, torch.Tensor]) -> Linear:
        """See QuantizationScheme."""
        return self.precision.linear_factory(tensors["weight"], tensors.get("bias"))
