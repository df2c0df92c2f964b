"""Inputs that each layer gets beside the residual stream: embeddings of a token for every layer (Gemma 3n and 4)."""

import math
from dataclasses import dataclass, replace

import torch

from pagewire_shard.layers.activation import PLAIN, Activation
from pagewire_shard.layers.embedding import vocabulary_embedding
from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.norm import Norm, NormSpec
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights, Weights
from pagewire_shard.parallel.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class LayerInputsSpec:
    """A table with a row for each token, the inputs of all layers, to which a product of its embedding is added."""

    num_layers: int
    vocab_size: int
    width: int
    """Of each layer's inputs."""
    norm: NormSpec
    """Of what the product yields for a layer."""
    ranks: Ranks = ALONE
    """Those that share the table out."""

    def for_rank(self, ranks: Ranks) -> "LayerInputsSpec":
        """What one rank has: some rows of the table, and all of the rest."""
        return replace(self, ranks=ranks)

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """The parameters by name; no name is also one of the decoder's own."""
        row = self.num_layers * self.width
        num_rows = self.ranks.padded_share(self.vocab_size, "tokens of the vocabulary")
        return {
            "layer_inputs_embed": Parameter("table", (num_rows,), row),
            "layer_inputs_project": Parameter("linear", (row,), hidden_size),
            "layer_inputs_norm": self.norm.parameter(self.width),
        }


class LayerInputs:
    """The inputs of all layers."""

    def __init__(self, spec: LayerInputsSpec, weights: Weights, hidden_size: int) -> None:
        table = weights.tensors["layer_inputs_embed"]["weight"]
        self._spec = spec
        self._embed = vocabulary_embedding(table, weights.precision.activations, weights.collectives)
        # Rounded as the scale of the token embeddings is.
        self._embed_scale = torch.tensor(math.sqrt(spec.width), dtype=table.dtype).item()
        self._project = weights.linears["layer_inputs_project"]
        self._project_scale = hidden_size**-0.5
        self._norm = spec.norm.build(weights.tensors["layer_inputs_norm"])

    def __call__(self, input_ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens] int64, and their embeddings [num_tokens, hidden] -> [num_tokens, num_layers, width]."""
        shape = (len(input_ids), self._spec.num_layers, self._spec.width)
        projected = self._norm((self._project(x) * self._project_scale).view(shape))
        embedded = (self._embed(input_ids) * self._embed_scale).view(shape)
        return (projected + embedded) * math.sqrt(0.5)


@dataclass(frozen=True, slots=True)
class SideInputSpec:
    """What a layer makes of its inputs, after its feed-forward block: norm(out(activation(gate(x)) * inputs))."""

    index: int
    """The layer's place among the inputs."""
    width: int
    activation: Activation
    norm: NormSpec

    def counted_from(self, first_layer: int) -> "SideInputSpec":
        """The same among the inputs of the layers from this one on."""
        return replace(self, index=self.index - first_layer)

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """The parameters by name; no name is also one of a mixer, a feed-forward block or another norm."""
        return {
            "side_gate": Parameter("linear", (self.width,), hidden_size),
            "side_out": Parameter("linear", (hidden_size,), self.width),
            "side_norm": self.norm.parameter(hidden_size),
        }

    def build(self, weights: LayerWeights) -> "SideInput":
        """The part of a layer with these parameters."""
        norm = self.norm.build(weights.tensors("side_norm"))
        return SideInput(self, weights.linear("side_gate"), weights.linear("side_out"), norm)


class SideInput:
    """What is added to the residual stream for a layer's inputs."""

    def __init__(self, spec: SideInputSpec, gate: Linear, out: Linear, norm: Norm) -> None:
        self._index = spec.index
        self._activate = PLAIN[spec.activation]
        self._gate = gate
        self._out = out
        self._norm = norm

    def __call__(self, x: torch.Tensor, layer_inputs: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden], [num_tokens, num_layers, width] -> [num_tokens, hidden]."""
        gated = self._activate(self._gate(x)) * layer_inputs[:, self._index]
        return self._norm(self._out(gated))
