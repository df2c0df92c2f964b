"""OLMo 2 and OLMo 3: Llama's shape with norms on what attention and MLP yield, and on all queries and all keys of a
token. OLMo 3 has a sliding window on three of four layers."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, every_nth_full, layer_windows, read_head_dim, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers
from pagewire_shard.models.rope import max_position, read_rope_of_type

OUTPUT_NORMS = {
    "post_attention_layernorm": ("mixer_out_norm", None),
    "post_feedforward_layernorm": ("feed_forward_out_norm", None),
}
"""Norms of the wiring "output"."""
OUTPUT_NORM_NAMES = replace(LLAMA_NAMES, layer_modules={**LLAMA_NAMES.layer_modules, **OUTPUT_NORMS})
OLMO2_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 50304,
    "rms_norm_eps": 1e-05,
    "eos_token_id": 50279,
}
OLMO3_DEFAULTS: dict[str, object] = {**OLMO2_DEFAULTS, "rope_theta": 500000.0, "sliding_window": 4096}
OLMO3_PATTERN = 4


def _olmo2_layers(fields: ConfigFields, spec: DecoderSpec) -> DecoderSpec:
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    spec = replace(spec, layers=tuple(replace(layer, wiring="output") for layer in spec.layers))
    return with_mixers(spec, lambda _, attention: replace(attention, qk_norm=norm, qk_norm_scope="all_heads"))


def _olmo2(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    windows = [0] * fields.integer("num_hidden_layers")
    return _olmo2_layers(fields, llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias))


def _olmo3(fields: ConfigFields) -> DecoderSpec:
    layer_types = every_nth_full(fields, OLMO3_PATTERN)
    bias = fields.flag("attention_bias")
    windows = layer_windows(layer_types, read_window(fields))
    spec = _olmo2_layers(fields, llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias))

    def rotated(index: int, attention: AttentionSpec) -> AttentionSpec:
        return replace(attention, rope=read_rope_of_type(fields, attention.head_dim, layer_types[index]))

    head_dim = read_head_dim(fields, fields.integer("num_attention_heads"))
    full = read_rope_of_type(fields, head_dim, "full_attention")
    return replace(with_mixers(spec, rotated), max_position=max_position(fields, full))


OLMO2 = Family(_olmo2, OUTPUT_NORM_NAMES, "olmo2", OLMO2_DEFAULTS)
OLMO3 = Family(_olmo3, OUTPUT_NORM_NAMES, "olmo3", OLMO3_DEFAULTS)
