"""Parameters: what a layer computes with, by name, and the tensors that each of them is stored as."""

from dataclasses import dataclass
from typing import Literal

import torch

Role = Literal[
    "linear", "table", "norm", "experts", "heads", "router", "correction", "vector", "float32_vector", "conv"
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One weight and possibly a bias, independent of how they are stored.

    Projections that read the same input are one parameter (qkv, gate and up), so that they are one matrix product; each
    of the checkpoint's matrices in it is a part.
    """

    role: Role
    """linear: multiplies; table: rows are looked up; norm: scale of a norm; experts: the matrices of all experts of a
    layer, one under the other; heads: those of all heads, likewise; router: multiplies, always in float32; correction:
    added to a router's scores, in float32; vector: numbers of another kind; float32_vector: such numbers in float32;
    conv: a row for each channel, what a convolution multiplies the channel's last inputs by, which checkpoints store as
    [channels, 1, width]."""
    parts: tuple[int, ...]
    """Rows of each part."""
    in_features: int = 0
    """Columns; 0: the weight is a vector."""
    bias: bool = False
    segments: tuple[tuple[int, ...], ...] = ()
    """Rows of the runs of each part that ranks share out each by itself, such as those of one kind of all heads and
    then those of another; empty: each part is one run."""
    is_stored: bool = True
    """Whether checkpoints have it. What they lack is a norm's, which then scales by 1."""

    def segments_of(self, part: int) -> tuple[int, ...]:
        """Rows of each run of a part."""
        return self.segments[part] if self.segments else (self.parts[part],)

    @property
    def num_rows(self) -> int:
        return sum(self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        return (self.num_rows, self.in_features) if self.in_features else (self.num_rows,)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One of the tensors that a parameter is stored as, such as its weight, bias or scales."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """Element type in memory. See CheckpointTensor.check_usable for the types that a checkpoint may store instead."""
    parts: tuple[int, ...]
    """Length of each of the parameter's parts in the first dimension."""
    dummy: float | None = None
    """Value of every element in dummy weights; None: normally distributed."""


def plain_tensors(parameter: Parameter, weight: torch.dtype, bias: torch.dtype) -> dict[str, TensorSpec]:
    """A weight, and a bias if the parameter has one, of these element types."""
    dummy = {"norm": 1.0, "correction": 0.0}.get(parameter.role)
    tensors = {"weight": TensorSpec(parameter.shape, weight, parameter.parts, dummy)}
    if parameter.bias:
        tensors["bias"] = TensorSpec((parameter.num_rows,), bias, parameter.parts, dummy=0.0)
    return tensors
