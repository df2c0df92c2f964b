"""Llama: RMS norms, rotary positions, gated MLP. Mistral: the same with a sliding window on every layer; Ministral and
CWM: on some. InternLM 3: Llama with biases everywhere or nowhere.

llama_spec and LLAMA_NAMES are shared by other families of this shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import (
    Family,
    layer_windows,
    read_activation,
    read_head_dim,
    read_layer_types,
    read_num_kv_heads,
    read_window,
)
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.rope import max_position, read_rope

LLAMA_DEFAULTS: dict[str, object] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "eos_token_id": 2,
}
MISTRAL_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}

MINISTRAL_DEFAULTS: dict[str, object] = {**MISTRAL_DEFAULTS, "head_dim": None}
CWM_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 6144,
    "intermediate_size": 21504,
    "num_hidden_layers": 64,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "sliding_window": 8192,
    "eos_token_id": [128001, 128008, 128009],
}

INTERNLM3_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 128512,
    "intermediate_size": 10240,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
}

LLAMA_NAMES = NameMap(
    prefix="model.",
    layer="layers.",
    modules={"embed_tokens": "embed", "norm": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        "input_layernorm": ("mixer_norm", None),
        "self_attn.q_proj": ("qkv", 0),
        "self_attn.k_proj": ("qkv", 1),
        "self_attn.v_proj": ("qkv", 2),
        "self_attn.q_norm": ("q_norm", None),
        "self_attn.k_norm": ("k_norm", None),
        "self_attn.o_proj": ("o", None),
        "post_attention_layernorm": ("feed_forward_norm", None),
        "mlp.gate_proj": ("up", 0),
        "mlp.up_proj": ("up", 1),
        "mlp.down_proj": ("down", None),
    },
)


def llama_spec(
    fields: ConfigFields,
    *,
    windows: Sequence[int],
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    is_partial: bool = False,
    interleaved: bool = False,
) -> DecoderSpec:
    """The spec of a decoder of Llama's shape.

    Args:
        windows: the sliding window of each layer; 0: none.
        is_partial: see read_rope.
        interleaved: see RopeSpec.
    """
    num_heads = fields.integer("num_attention_heads")
    head_dim = read_head_dim(fields, num_heads)
    rope = replace(read_rope(fields, head_dim, is_partial=is_partial), interleaved=interleaved)
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    attention = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=read_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qk_norm=norm if qk_norm else None,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
    )
    mlp = MlpSpec(
        intermediate_size=fields.integer("intermediate_size"),
        activation=read_activation(fields, "hidden_act", gated=True),
        gated=True,
        bias=mlp_bias,
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


def with_mixers(spec: DecoderSpec, change: Callable[[int, AttentionSpec], AttentionSpec]) -> DecoderSpec:
    """The decoder with each layer's attention changed, given the layer's index."""
    layers = (
        replace(layer, mixer=change(index, cast(AttentionSpec, layer.mixer))) for index, layer in enumerate(spec.layers)
    )
    return replace(spec, layers=tuple(layers))


def _llama(fields: ConfigFields) -> DecoderSpec:
    attention_bias = fields.flag("attention_bias")
    return llama_spec(
        fields,
        windows=[0] * fields.integer("num_hidden_layers"),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias"),
    )


def _mistral(fields: ConfigFields) -> DecoderSpec:
    window = read_window(fields)
    return llama_spec(fields, windows=[window] * fields.integer("num_hidden_layers"), qkv_bias=False, o_bias=False)


def _ministral(fields: ConfigFields) -> DecoderSpec:
    layer_types = read_layer_types(fields) or ("sliding_attention",) * fields.integer("num_hidden_layers")
    return llama_spec(fields, windows=layer_windows(layer_types, read_window(fields)), qkv_bias=False, o_bias=False)


def _cwm(fields: ConfigFields) -> DecoderSpec:
    """Every fourth layer, from the first one on, attends to all tokens."""
    num_layers = fields.integer("num_hidden_layers")
    layer_types = read_layer_types(fields) or tuple(
        "sliding_attention" if index % 4 else "full_attention" for index in range(num_layers)
    )
    return llama_spec(fields, windows=layer_windows(layer_types, read_window(fields)), qkv_bias=False, o_bias=False)


def _internlm3(fields: ConfigFields) -> DecoderSpec:
    if fields.flag("attention_bias") != fields.flag("mlp_bias"):
        raise fields.unsupported("mlp_bias", "the value of attention_bias")
    return _llama(fields)


LLAMA = Family(_llama, LLAMA_NAMES, "llama", LLAMA_DEFAULTS)
MISTRAL = Family(_mistral, LLAMA_NAMES, "mistral", MISTRAL_DEFAULTS)
MINISTRAL = Family(_ministral, LLAMA_NAMES, "ministral", MINISTRAL_DEFAULTS)
CWM = Family(_cwm, LLAMA_NAMES, "cwm", CWM_DEFAULTS)
INTERNLM3 = Family(
    _internlm3, LLAMA_NAMES, "internlm3", INTERNLM3_DEFAULTS, {"qkv_bias": "attention_bias", "bias": "mlp_bias"}
)
