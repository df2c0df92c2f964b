"""What a model family's file provides, and readers of fields that several families share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pagewire_shard.layers.activation import GATED, Activation
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    # Three names of the tanh approximation.
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


@dataclass(frozen=True, slots=True)
class Family:
    """One model family."""

    spec: Callable[[ConfigFields], DecoderSpec]
    """Reads a configuration. Raises UnsupportedArchitecture naming the field that the decoder does not support."""
    names: NameMap
    model_type: str
    """The family's model_type in config.json."""
    defaults: Mapping[str, object]
    """Defaults of transformers' configuration class, for every field that is read."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias -> name of a field, as in the configuration class's attribute_map."""
    quantizations: tuple[str, ...] = ()
    """Quantization methods, as config.json names them, whose weights are dequantized while they are read."""
    names_by_spec: Callable[[DecoderSpec], NameMap] | None = None
    """The names of a decoder's tensors, where they depend on more than the family; None: they do not."""
    text_section: str | None = None
    """Object of a multimodal model's configuration that describes its text model; None: there is none."""

    def names_of(self, spec: DecoderSpec) -> NameMap:
        """The names that checkpoints of this decoder have."""
        return self.names_by_spec(spec) if self.names_by_spec else self.names

    def complete(self, fields: ConfigFields) -> ConfigFields:
        """The fields with this family's defaults."""
        if self.text_section is not None:
            fields = fields.with_section(self.text_section)
        return fields.completed(self.defaults, self.aliases)


def read_activation(fields: ConfigFields, name: str, *, gated: bool) -> Activation:
    """The activation that field `name` asks for."""
    accepted = {spelling: kind for spelling, kind in ACTIVATIONS.items() if not gated or kind in GATED}
    activation = accepted.get(fields.text(name))
    if activation is None:
        raise fields.unsupported(name, ", ".join(accepted))
    return activation


def read_head_dim(fields: ConfigFields, num_heads: int) -> int:
    """head_dim, by default hidden_size / num_heads."""
    return fields.integer("head_dim") if "head_dim" in fields else split_heads(fields, "hidden_size", num_heads)


def split_heads(fields: ConfigFields, name: str, num_heads: int) -> int:
    """Size of each head, if field `name` is the size of all heads together."""
    hidden_size = fields.integer(name)
    if hidden_size % num_heads:
        raise fields.malformed(name, f"must be a multiple of the number of attention heads, {num_heads}")
    return hidden_size // num_heads


def read_num_kv_heads(fields: ConfigFields, num_heads: int) -> int:
    """num_key_value_heads, by default one per query head."""
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.malformed("num_key_value_heads", f"must divide num_attention_heads, {num_heads}")
    return num_kv_heads


def read_window(fields: ConfigFields) -> int:
    """sliding_window; null: 0, no window."""
    return fields.integer("sliding_window") if "sliding_window" in fields else 0


def read_layer_types(fields: ConfigFields) -> tuple[str, ...] | None:
    """layer_types, one of full_attention and sliding_attention for each layer; None if absent."""
    layer_types = fields.texts("layer_types")
    if layer_types is None:
        return None
    num_layers = fields.integer("num_hidden_layers")
    if len(layer_types) != num_layers:
        raise fields.malformed("layer_types", f"must have num_hidden_layers entries, {num_layers}")
    if set(layer_types) - {"full_attention", "sliding_attention"}:
        raise fields.unsupported("layer_types", "full_attention, sliding_attention")
    return layer_types


def every_nth_full(fields: ConfigFields, pattern: int) -> tuple[str, ...]:
    """layer_types; if they are absent, every pattern-th layer attends to all tokens, the others have a window."""
    num_layers = fields.integer("num_hidden_layers")
    default = tuple("sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers))
    return read_layer_types(fields) or default


def layer_windows(layer_types: Sequence[str], window: int) -> list[int]:
    """The sliding window of each layer; 0: none."""
    return [window if layer_type == "sliding_attention" else 0 for layer_type in layer_types]


def refuse(fields: ConfigFields, name: str, accepted: bool) -> None:
    """Raises UnsupportedArchitecture if the flag `name` is not `accepted`."""
    if fields.flag(name) is not accepted:
        raise fields.unsupported(name, str(accepted).lower())
