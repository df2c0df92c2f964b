"""Gemma: Llama's shape with embeddings scaled by the root of their width, RMS norms whose weights are stored less 1 and
applied in float32, and gates activated by the tanh form of GELU.

Gemma 2 has norms on what attention and MLP yield too, soft-caps of attention scores and logits, and a sliding window on
every other layer; VaultGemma is Gemma 2 without those norms. Gemma 3 has no soft-caps, but norms of each head's query
and key, a window on five of six layers, and a rotary embedding of their own for layers with a window.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec, Wiring
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import (
    Family,
    every_nth_full,
    layer_windows,
    read_activation,
    read_window,
    refuse,
)
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers
from pagewire_shard.models.rope import max_position, read_rope

GEMMA_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
GEMMA2_DEFAULTS: dict[str, object] = {
    **GEMMA_DEFAULTS,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3_DEFAULTS: dict[str, object] = {
    **GEMMA2_DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
GEMMA2_PATTERN = 2

VAULT_GEMMA_NAMES = replace(
    LLAMA_NAMES,
    layer_modules={**LLAMA_NAMES.layer_modules, "pre_feedforward_layernorm": ("feed_forward_norm", None)},
)
SANDWICH_NAMES = replace(
    VAULT_GEMMA_NAMES,
    layer_modules={
        **VAULT_GEMMA_NAMES.layer_modules,
        "post_attention_layernorm": ("mixer_out_norm", None),
        "post_feedforward_layernorm": ("feed_forward_out_norm", None),
    },
)


def _gemma_layers(
    fields: ConfigFields, windows: Sequence[int], activation_field: str, wiring: Wiring = "pre"
) -> DecoderSpec:
    """What all of them have in common."""
    if "use_bidirectional_attention" in fields:
        refuse(fields, "use_bidirectional_attention", accepted=False)
    bias = fields.flag("attention_bias")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias)
    norm = NormSpec("rms", fields.number("rms_norm_eps"), weight_offset=1.0, float32_weight=True)
    activation = read_activation(fields, activation_field, gated=True)

    def change(layer: LayerSpec) -> LayerSpec:
        mlp = replace(cast(MlpSpec, layer.feed_forward), activation=activation)
        return replace(layer, feed_forward=mlp, norm=norm, wiring=wiring)

    return replace(
        spec,
        layers=tuple(change(layer) for layer in spec.layers),
        final_norm=norm,
        embedding_scale=math.sqrt(spec.hidden_size),
        rounds_embedding_scale=True,
    )


def _gemma(fields: ConfigFields) -> DecoderSpec:
    spec = _gemma_layers(fields, [0] * fields.integer("num_hidden_layers"), "hidden_act")
    if fields.text("hidden_act") != "gelu":
        return spec
    # The first releases state "gelu" and mean its tanh form.
    layers = (
        replace(layer, feed_forward=replace(cast(MlpSpec, layer.feed_forward), activation="gelu_tanh"))
        for layer in spec.layers
    )
    return replace(spec, layers=tuple(layers))


def _soft_capped(fields: ConfigFields, spec: DecoderSpec) -> DecoderSpec:
    """The decoder with the scale and soft-caps that the configuration states."""
    scale = fields.positive_number("query_pre_attn_scalar") ** -0.5
    softcap = fields.number("attn_logit_softcapping", 0.0)
    spec = with_mixers(spec, lambda _, attention: replace(attention, scale=scale, logit_softcap=softcap))
    return replace(spec, logit_softcap=fields.number("final_logit_softcapping", 0.0))


def _gemma2(fields: ConfigFields, wiring: Wiring = "sandwich") -> DecoderSpec:
    windows = layer_windows(every_nth_full(fields, GEMMA2_PATTERN), read_window(fields))
    return _soft_capped(fields, _gemma_layers(fields, windows, "hidden_activation", wiring))


def _vault_gemma(fields: ConfigFields) -> DecoderSpec:
    return _gemma2(fields, "pre")


def _gemma3(fields: ConfigFields) -> DecoderSpec:
    if "attn_logit_softcapping" in fields:
        raise fields.unsupported("attn_logit_softcapping", "null")
    layer_types = every_nth_full(fields, fields.integer("sliding_window_pattern"))
    windows = layer_windows(layer_types, read_window(fields))
    spec = _soft_capped(fields, _gemma_layers(fields, windows, "hidden_activation", "sandwich"))

    def change(index: int, attention: AttentionSpec) -> AttentionSpec:
        rope = _gemma3_rope(fields, attention.head_dim, layer_types[index])
        return replace(attention, rope=rope, qk_norm=spec.final_norm)

    head_dim = cast(AttentionSpec, spec.layers[0].mixer).head_dim
    full = _gemma3_rope(fields, head_dim, "full_attention")
    return replace(with_mixers(spec, change), max_position=max_position(fields, full))


def _gemma3_rope(fields: ConfigFields, head_dim: int, layer_type: str) -> RopeSpec:
    """The rotary embedding of layers of a type. transformers 5 writes an object for each; transformers 4 wrote
    rope_local_base_freq for layers with a window, and rope_theta and rope_scaling for the others."""
    if layer_type == "sliding_attention":
        scaling, theta_field = fields.section("rope_parameters").section(layer_type), "rope_local_base_freq"
    else:
        stated = fields.section("rope_scaling")
        is_old = "rope_type" in stated or "type" in stated
        scaling = stated if is_old else fields.section("rope_parameters").section(layer_type)
        theta_field = "rope_theta"
    return read_rope(fields, head_dim, scaling=scaling, theta_field=theta_field)


GEMMA3_NAMES = replace(
    SANDWICH_NAMES,
    # As transformers 4 wrote them, and as transformers 5 does.
    text_prefixes=("language_model.model.", "language_model.", "model.language_model."),
    skipped=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
)

GEMMA = Family(_gemma, LLAMA_NAMES, "gemma", GEMMA_DEFAULTS)
GEMMA2 = Family(_gemma2, SANDWICH_NAMES, "gemma2", GEMMA2_DEFAULTS)
GEMMA3_TEXT = Family(_gemma3, SANDWICH_NAMES, "gemma3_text", GEMMA3_DEFAULTS)
GEMMA3 = Family(_gemma3, GEMMA3_NAMES, "gemma3", GEMMA3_DEFAULTS, text_section="text_config")
VAULT_GEMMA = Family(_vault_gemma, VAULT_GEMMA_NAMES, "vaultgemma", GEMMA2_DEFAULTS)
