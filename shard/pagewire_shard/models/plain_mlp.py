"""Arcee, Nemotron, StarCoder2 and Jais 2: decoders whose MLP is not gated.

Arcee is Llama's shape with a squared ReLU. Nemotron has that, layer norms whose weights are stored less 1, and rotates
a part of each head. StarCoder2 has layer norms, biases everywhere, and perhaps a sliding window. Jais 2 has layer
norms, biases and a squared ReLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pagewire_shard.layers.activation import Activation
from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_activation, read_head_dim, read_num_kv_heads, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.rope import max_position, read_rope


def plain_names(up: str, down: str) -> NameMap:
    """Llama's names with these modules of the MLP."""
    attention = {module: place for module, place in LLAMA_NAMES.layer_modules.items() if "mlp." not in module}
    return replace(LLAMA_NAMES, layer_modules={**attention, up: ("up", None), down: ("down", None)})


@dataclass(frozen=True, slots=True)
class Biases:
    """Which matrices have a bias."""

    qkv: bool
    o: bool
    mlp: bool


def plain_spec(
    fields: ConfigFields,
    norm: NormSpec,
    biases: Biases,
    windows: Sequence[int],
    *,
    is_partial: bool = False,
    activation: Activation | None = None,
) -> DecoderSpec:
    """The spec of a decoder with rotary positions whose MLP is not gated; see llama_spec.

    Args:
        activation: None: the one that hidden_act names.
    """
    num_heads = fields.integer("num_attention_heads")
    head_dim = read_head_dim(fields, num_heads)
    rope = read_rope(fields, head_dim, is_partial=is_partial)
    attention = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=read_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qkv_bias=biases.qkv,
        o_bias=biases.o,
    )
    mlp = MlpSpec(
        intermediate_size=fields.integer("intermediate_size"),
        activation=activation or read_activation(fields, "hidden_act", gated=False),
        gated=False,
        bias=biases.mlp,
    )
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        max_position=max_position(fields, rope),
        layers=tuple(LayerSpec(replace(attention, sliding_window=window), mlp, norm) for window in windows),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
    )


ARCEE_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 18432,
    "num_key_value_heads": None,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "eos_token_id": 128001,
}


def _arcee(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    biases = Biases(qkv=bias, o=bias, mlp=fields.flag("mlp_bias"))
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    return plain_spec(fields, norm, biases, [0] * fields.integer("num_hidden_layers"))


NEMOTRON_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_attention_heads": 48,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "initializer_range": 0.0134,
    "norm_eps": 1e-05,
    "partial_rotary_factor": 0.5,
    "eos_token_id": 3,
}


def _nemotron(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    biases = Biases(qkv=bias, o=bias, mlp=fields.flag("mlp_bias"))
    norm = NormSpec("layer", fields.number("norm_eps"), bias=True, weight_offset=1.0)
    return plain_spec(fields, norm, biases, [0] * fields.integer("num_hidden_layers"), is_partial=True)


STARCODER2_DEFAULTS: dict[str, object] = {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "initializer_range": 0.018042,
    "norm_epsilon": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "use_bias": True,
    "tie_word_embeddings": True,
    "eos_token_id": 50256,
}


def _starcoder2(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("use_bias")
    norm = NormSpec("layer", fields.number("norm_epsilon"), bias=True)
    windows = [read_window(fields)] * fields.integer("num_hidden_layers")
    return plain_spec(fields, norm, Biases(qkv=bias, o=bias, mlp=bias), windows)


JAIS2_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 150272,
    "hidden_size": 3328,
    "intermediate_size": 26624,
    "num_attention_heads": 26,
    "hidden_act": "relu2",
    "max_position_embeddings": 8192,
    "attention_bias": True,
    "mlp_bias": True,
    "layer_norm_eps": 1e-05,
    "eos_token_id": 150024,
}


def _jais2(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    norm = NormSpec("layer", fields.number("layer_norm_eps"), bias=True)
    biases = Biases(qkv=bias, o=bias, mlp=fields.flag("mlp_bias"))
    return plain_spec(fields, norm, biases, [0] * fields.integer("num_hidden_layers"))


ARCEE = Family(_arcee, plain_names("mlp.up_proj", "mlp.down_proj"), "arcee", ARCEE_DEFAULTS)
NEMOTRON = Family(_nemotron, plain_names("mlp.up_proj", "mlp.down_proj"), "nemotron", NEMOTRON_DEFAULTS)
STARCODER2 = Family(_starcoder2, plain_names("mlp.c_fc", "mlp.c_proj"), "starcoder2", STARCODER2_DEFAULTS)
JAIS2 = Family(_jais2, plain_names("mlp.up_proj", "mlp.down_proj"), "jais2", JAIS2_DEFAULTS)
