"""A decoder's weights, collected parameter by parameter, and each layer's view of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec

import torch

from pagewire_shard.layers.linear import Linear, SummedLinear, router_linear
from pagewire_shard.layers.parameter import Parameter, TensorSpec, plain_tensors
from pagewire_shard.layers.precision import Precision
from pagewire_shard.layers.quantization import QuantizationScheme, Unquantized
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.parallel.collectives import Alone, Collectives

P = ParamSpec("P")


class Weights:
    """The weights that a decoder is built from, by the names of its parameters; linears always contain lm_head."""

    def __init__(
        self,
        precision: Precision,
        scheme: QuantizationScheme | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        """scheme: of the matrix products; None: nothing is quantized. collectives: of the ranks that share the model
        out; None: one device holds all of it."""
        self.precision = precision
        self.collectives = collectives or Alone()
        self.linears: dict[str, Linear] = {}
        self.tensors: dict[str, Mapping[str, torch.Tensor]] = {}
        """Parameters of the other roles: name -> tensor name -> tensor."""
        self._unquantized = Unquantized(precision)
        self._scheme = scheme or self._unquantized
        self._shared_table: str | None = None
        """Name of the table that a Linear reads too."""

    @property
    def num_bytes(self) -> int:
        """Memory of all weights."""
        linears = sum(linear.num_bytes for linear in self.linears.values())
        others = (t for name, tensors in self.tensors.items() if name != self._shared_table for t in tensors.values())
        return linears + sum(tensor.nbytes for tensor in others)

    def specs(self, parameter: Parameter) -> dict[str, TensorSpec]:
        """The tensors that `put` takes for the parameter."""
        if parameter.role == "linear":
            return self._scheme.tensors(parameter)
        precision = self.precision
        weight = {
            "table": precision.tables,
            "experts": precision.linear_weights,
            "heads": precision.linear_weights,
            "router": torch.float32,
            "correction": torch.float32,
            "float32_vector": torch.float32,
        }.get(parameter.role, precision.activations)
        return plain_tensors(parameter, weight, precision.activations)

    def put(
        self, name: str, parameter: Parameter, tensors: Mapping[str, torch.Tensor], *, is_partial: bool = False
    ) -> None:
        """Takes a complete parameter. Matrices of products are packed; the caller then drops their tensors.

        is_partial: the matrix has this rank's columns only, so that products are to be summed over all ranks.
        """
        if parameter.role == "linear":
            linear = self._scheme.linear(parameter, tensors)
            self.linears[name] = SummedLinear(linear, self.collectives) if is_partial else linear
        elif parameter.role == "router":
            self.linears[name] = router_linear(tensors["weight"])
        else:
            self.tensors[name] = tensors

    def tie_output(self, lm_head: Parameter, bias: torch.Tensor | None = None) -> None:
        """Makes the output projection of the token embeddings, with a bias of its own if given.

        A Linear that keeps its weight shares the table. A packed one is a copy, and the table stays for lookups.
        """
        table = self.tensors["embed"]["weight"]
        tensors = {"weight": table.to(self.precision.linear_weights)} | (
            {} if bias is None else {"bias": bias.to(table.device)}
        )
        linear = self._unquantized.linear(lm_head, tensors)
        if linear.keeps_weight and tensors["weight"] is table:
            self._shared_table = "embed"
        self.linears["lm_head"] = linear

    def drop_embeddings(self) -> None:
        """Frees the table of token embeddings where nothing is looked up in it: it was there for tie_output."""
        self.tensors.pop("embed", None)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """What one layer is built from: its own weights, and rotary tables that it shares with other layers."""

    weights: Weights
    prefix: str
    """Prefix of the layer's parameter names, such as "layers.3."."""
    rotary_table: Callable[[RopeSpec], torch.Tensor]
    """The cosines and sines of a rotary embedding, [max_position, rotary_dim]; the same tensor for the same spec."""

    def linear(self, name: str) -> Linear:
        """The Linear of a parameter of role linear."""
        return self.weights.linears[self.prefix + name]

    def partial_linear(self, name: str) -> Linear:
        """The same without the sum over all ranks, for a layer that sums more than this product."""
        linear = self.linear(name)
        return linear.partial if isinstance(linear, SummedLinear) else linear

    def summed(self, partial: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
        """The sum over all ranks of what each computes; of one that is alone just that."""
        collectives = self.weights.collectives
        if collectives.ranks.is_alone:
            return partial

        def whole(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
            return collectives.all_reduce(partial(*args, **kwargs))

        return whole

    def expert_linears(self, name: str, num_experts: int) -> list[Linear]:
        """A Linear of each matrix of a parameter of role experts, in place of its tensor, which is freed."""
        tensors = self.weights.tensors.pop(self.prefix + name)
        biases = tensors["bias"].chunk(num_experts) if "bias" in tensors else (None,) * num_experts
        matrices = tensors["weight"].chunk(num_experts)
        factory = self.weights.precision.linear_factory
        linears = [factory(matrix, bias) for matrix, bias in zip(matrices, biases, strict=True)]
        self.weights.linears |= {f"{self.prefix}{name}.{index}": linear for index, linear in enumerate(linears)}
        return linears

    def own_linears(self, name: str, matrices: Sequence[torch.Tensor]) -> list[Linear]:
        """A Linear of each matrix that the layer has made of a parameter's; they count as `name`.0 and so on."""
        linears = [self.weights.precision.linear_factory(matrix, None) for matrix in matrices]
        self.weights.linears |= {f"{self.prefix}{name}.{index}": linear for index, linear in enumerate(linears)}
        return linears

    def drop(self, name: str) -> None:
        """Frees the tensors of a parameter that the layer has made something else of."""
        del self.weights.tensors[self.prefix + name]

    def tensors(self, name: str) -> Mapping[str, torch.Tensor]:
        """The tensors of a parameter of another role."""
        return self.weights.tensors[self.prefix + name]
