"""Translates a checkpoint's tensor names to parameters of the decoder."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pagewire_shard.layers.block import LayerSpec

BUFFERS = re.compile(
    r"(.+\.)?"
    r"(\w*inv_freq|(cos|sin|cos_sin)_cached?"  # tables of rotary positions
    r"|(attn|attention|self_attn)\.(bias|masked_bias|causal_mask|mask)"  # causal masks
    r"|mlp\.act_fn\.(beta|eps)"  # constants of xIELU
    r"|position_ids|decoder\.version)"
)
"""Names of buffers that some version of a model's code saved with its weights."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint tensor goes."""

    parameter: str
    """Name of one of DecoderSpec.parameters()."""
    tensor: str
    """Which of the parameter's tensors: weight, bias, or what else its quantization scheme stores."""
    part: int | None
    """Which part of a merged parameter; None: all of it."""


@dataclass(frozen=True, slots=True)
class NameMap:
    """A family's names. A module is a tensor name without the optional prefix and without its last component,
    which names one of the parameter's tensors."""

    prefix: str
    """Optional prefix of every name, such as "model."."""
    layer: str
    """Prefix of the layer index, such as "layers."."""
    modules: Mapping[str, str]
    """Module outside the layers -> parameter."""
    layer_modules: Mapping[str, tuple[str, int | None]]
    """Module within a layer -> parameter, part."""
    experts: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    """Module within a layer with {} for an expert's index -> parameter, its parts for each expert, which of them."""
    layer_tensors: Mapping[str, str] = field(default_factory=dict)
    """Tensor within a layer, by all of its name -> parameter that it is the weight of, or parameter and tensor such as
    "experts_up.bias": a matrix of every expert, [num_experts, rows, columns], a row of every expert, or a vector whose
    name does not end in "weight"."""
    row_orders: Mapping[str, Callable[[LayerSpec], torch.Tensor]] = field(default_factory=dict)
    """Module or tensor within a layer that is stored with its rows in another order -> for each row of what it fills,
    which stored row it is, [num_rows] int64."""
    text_prefixes: tuple[str, ...] = ()
    """What a multimodal checkpoint may have before the names of its text model, in place of the prefix."""
    skipped: tuple[str, ...] = ()
    """Beginnings of names of tensors that are not loaded, such as those of a vision tower."""
    mtp_layers: bool = False
    """Checkpoints may hold layers beyond the last one, which predict further tokens. They are not loaded."""
    unused: tuple[str, ...] = ()
    """Modules within a layer that checkpoints have for layers too that do without them."""
    only_for: Mapping[str, Callable[[LayerSpec], bool]] = field(default_factory=dict)
    """Module within a layer that shares its place with another one -> whether it is the one that the layer has."""
    transposed_experts: bool = False
    """Matrices of every expert are stored [num_experts, in_features, out_features]."""
    transposed: bool = False
    """The layers' matrices are stored [in_features, out_features]."""

    def target(self, name: str) -> Target | None:
        """Where the tensor goes; None if the family has no such tensor."""
        name = self._in_text_model(name)
        module, _, tensor = name.rpartition(".")
        if module in self.modules:
            return Target(self.modules[module], tensor, None)
        match = self._match_layer(name)
        if match is None:
            return None
        layer_module, _, tensor = match[2].rpartition(".")
        if named := self.layer_tensors.get(match[2]):
            parameter, _, tensor = named.partition(".")
            tensor, part = tensor or "weight", None
        elif place := self._layer_place(layer_module):
            parameter, part = place
        else:
            return None
        return Target(f"layers.{int(match[1])}.{parameter}", tensor, part)

    def layer_index(self, name: str) -> int | None:
        """The index of the layer that the tensor belongs to by its name; None: to none."""
        match = re.match(rf"{re.escape(self.layer)}(\d+)\.", self._in_text_model(name))
        return None if match is None else int(match[1])

    def is_unused(self, name: str) -> bool:
        """Whether the tensor, which has no place in the model, is one that layers may do without."""
        match = re.fullmatch(rf"{re.escape(self.layer)}\d+\.(.+)\.\w+", self._in_text_model(name))
        return match is not None and match[1] in self.unused

    def _in_text_model(self, name: str) -> str:
        for prefix in self.text_prefixes:
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name.removeprefix(self.prefix)

    def _layer_place(self, module: str) -> tuple[str, int | None] | None:
        if module in self.layer_modules:
            return self.layer_modules[module]
        indexed = re.fullmatch(r"(.+\.)(\d+)(\..+)", module)
        if indexed is None or f"{indexed[1]}{{}}{indexed[3]}" not in self.experts:
            return None
        parameter, num_parts, part = self.experts[f"{indexed[1]}{{}}{indexed[3]}"]
        return parameter, int(indexed[2]) * num_parts + part

    def row_order(self, name: str, layers: Sequence[LayerSpec]) -> torch.Tensor | None:
        """For each row of the place that the tensor goes to, which of its rows; None: they are in that order."""
        match = self._match_layer(self._in_text_model(name)) if self.row_orders else None
        if match is None:
            return None
        order = self.row_orders.get(match[2]) or self.row_orders.get(match[2].rpartition(".")[0])
        return None if order is None else order(layers[int(match[1])])

    def _match_layer(self, name: str) -> re.Match[str] | None:
        """Matches a name without the prefix; its groups are the layer's index and the name within the layer."""
        return re.fullmatch(rf"{re.escape(self.layer)}(\d+)\.(.+)", name)

    def source(self, parameter: str, tensor: str, part: int | None, layers: Sequence[LayerSpec]) -> str:
        """The name of the tensor that fills this place, without the prefix, for messages; the inverse of target."""
        for module, name in self.modules.items():
            if name == parameter:
                return f"{module}.{tensor}"
        _, index, layer_parameter = parameter.split(".")
        for module, place in self.layer_modules.items():
            if module in self.only_for and not self.only_for[module](layers[int(index)]):
                continue
            if place in ((layer_parameter, part), (layer_parameter, None)):
                return f"{self.layer}{index}.{module}.{tensor}"
        for module, (name, num_parts, offset) in self.experts.items():
            if name == layer_parameter and part is not None and part % num_parts == offset:
                return f"{self.layer}{index}.{module.format(part // num_parts)}.{tensor}"
        wanted = layer_parameter if tensor == "weight" else f"{layer_parameter}.{tensor}"
        for name, target in self.layer_tensors.items():
            if target == wanted:
                return f"{self.layer}{index}.{name}"
        raise AssertionError(f"no tensor fills {parameter} {tensor} {part}")


def is_needless(name: str) -> bool:
    """Whether the tensor is a buffer that checkpoints are known to contain and the decoder computes itself."""
    return BUFFERS.fullmatch(name) is not None
