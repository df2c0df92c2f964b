"""What a model family's file provides, and readers of fields that several families share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pagewire_shard.layers.activation import Activation
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

    def complete(self, fields: ConfigFields) -> ConfigFields:
        """The fields with this family's defaults."""
        return fields.completed(self.defaults, self.aliases)


def read_activation(fields: ConfigFields, name: str, *, gated: bool) -> Activation:
    """The activation that field `name` asks for."""
    accepted = {spelling: kind for spelling, kind in ACTIVATIONS.items() if kind != "relu" or not gated}
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


def refuse(fields: ConfigFields, name: str, accepted: bool) -> None:
    """Raises UnsupportedArchitecture if the flag `name` is not `accepted`."""
    if fields.flag(name) is not accepted:
        raise fields.unsupported(name, str(accepted).lower())
