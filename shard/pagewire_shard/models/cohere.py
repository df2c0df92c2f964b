"""Cohere (Command R): attention and MLP in parallel on one layer norm without bias, interleaved rotary embedding,
scaled logits, optionally a layer norm of each head's query and key. Cohere 2 (Command A): the same with a sliding
window on most layers."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import (
    Family,
    every_nth_full,
    layer_windows,
    read_activation,
    read_head_dim,
    read_num_kv_heads,
)
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, with_mixers
from pagewire_shard.models.rope import max_position, read_rope

DEFAULTS: dict[str, object] = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "logit_scale": 0.0625,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "use_qk_norm": False,
    "eos_token_id": 255001,
}


COHERE2_DEFAULTS: dict[str, object] = {
    **DEFAULTS,
    "rope_theta": 10000.0,
    "head_dim": None,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


def _cohere(fields: ConfigFields) -> DecoderSpec:
    num_heads = fields.integer("num_attention_heads")
    head_dim = read_head_dim(fields, num_heads)
    rope = replace(read_rope(fields, head_dim), interleaved=True)
    norm = NormSpec("layer", fields.number("layer_norm_eps"))
    bias = fields.flag("attention_bias")
    attention = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=read_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qk_norm=norm if fields.flag("use_qk_norm", False) else None,
        qk_norm_scope="per_head",
        qkv_bias=bias,
        o_bias=bias,
    )
    mlp = MlpSpec(
        intermediate_size=fields.integer("intermediate_size"),
        activation=read_activation(fields, "hidden_act", gated=True),
        gated=True,
        bias=False,
    )
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        # Released models were trained for the longer context that they state as model_max_length.
        max_position=fields.integer("model_max_length", max_position(fields, rope)),
        layers=(LayerSpec(attention, mlp, norm, wiring="parallel"),) * fields.integer("num_hidden_layers"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
        logit_scale=fields.number("logit_scale"),
    )


def _cohere2(fields: ConfigFields) -> DecoderSpec:
    """Layers with a window rotate their heads, the others do not."""
    spec = _cohere(fields)
    layer_types = every_nth_full(fields, fields.integer("sliding_window_pattern"))
    windows = layer_windows(layer_types, fields.integer("sliding_window"))

    def change(index: int, attention: AttentionSpec) -> AttentionSpec:
        rope = attention.rope if windows[index] else None
        return replace(attention, sliding_window=windows[index], rope=rope)

    return with_mixers(spec, change)


COHERE = Family(_cohere, LLAMA_NAMES, "cohere", DEFAULTS)
COHERE2 = Family(_cohere2, LLAMA_NAMES, "cohere2", COHERE2_DEFAULTS)
