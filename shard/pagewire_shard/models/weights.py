"""A decoder's weights, collected parameter by parameter."""

from dataclasses import dataclass, field

import torch

from pagewire_shard.layers.linear import Linear, PlainLinear
from pagewire_shard.layers.precision import Precision
from pagewire_shard.models.parameters import Parameter

NormWeights = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(slots=True)
class Weights:
    """What a decoder is built from; keys are those of models.parameters.parameters(), lm_head always among linears."""

    precision: Precision
    linears: dict[str, Linear] = field(default_factory=dict)
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: dict[str, NormWeights] = field(default_factory=dict)
    experts: dict[str, torch.Tensor] = field(default_factory=dict)
    _shared_table: str = ""
    """The table that a linear uses too."""

    @property
    def num_bytes(self) -> int:
        """Memory of all weights."""
        linears = sum(linear.num_bytes for linear in self.linears.values())
        tables = sum(table.nbytes for name, table in self.tables.items() if name != self._shared_table)
        norms = sum(t.nbytes for pair in self.norms.values() for t in pair if t is not None)
        return linears + tables + norms + sum(weight.nbytes for weight in self.experts.values())

    def dtype(self, parameter: Parameter) -> torch.dtype:
        """What put wants a parameter's weight to be."""
        by_role = {
            "linear": self.precision.linear_weights,
            "table": self.precision.tables,
            "norm": self.precision.activations,
            "experts": self.precision.activations,
        }
        return by_role[parameter.role]

    def put(self, name: str, parameter: Parameter, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Takes a complete parameter; a linear one is packed here, and its weight is free when the caller drops it."""
        match parameter.role:
            case "linear":
                self.linears[name] = self.precision.linear_factory(weight, bias)
            case "table":
                self.tables[name] = weight
            case "norm":
                self.norms[name] = (weight, bias)
            case "experts":
                self.experts[name] = weight

    def tie_output(self, bias: torch.Tensor | None = None) -> None:
        """Makes the output projection of the token embeddings, with a bias of its own if given.

        A plain one shares the table. A packed one is a copy: the table stays for looking rows up.
        """
        table = self.tables["embed"]
        linear = self.precision.linear_factory(table.to(self.precision.linear_weights), bias)
        if isinstance(linear, PlainLinear) and table.dtype is self.precision.linear_weights:
            self._shared_table = "embed"
        self.linears["lm_head"] = linear
