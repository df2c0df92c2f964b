"""Gemma 4: Gemma 3 with norms whose weights are stored whole, a norm of values, embeddings of every token for every
layer, and a learned scale of each layer's output. Heads of layers without a window are larger, and their keys may be
their values too.
The last layers may attend to the keys and values of an earlier one. A mixture of experts may stand beside the dense
block of every layer.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.layer_input import LayerInputsSpec, SideInputSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec, ParallelExpertsSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import read_top_k
from pagewire_shard.models.family import Family, every_nth_full, layer_windows, read_activation, read_window
from pagewire_shard.models.gemma import GEMMA3_DEFAULTS, SANDWICH_NAMES
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import llama_spec
from pagewire_shard.models.rope import read_rope

DEFAULTS: dict[str, object] = {
    **GEMMA3_DEFAULTS,
    "vocab_size": 262144,
    "num_hidden_layers": 30,
    "sliding_window": 512,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    },
    "global_head_dim": 512,
    "num_global_key_value_heads": None,
    "attention_k_eq_v": False,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
}
PATTERN = 6

NAMES = replace(
    SANDWICH_NAMES,
    modules={
        **SANDWICH_NAMES.modules,
        "embed_tokens_per_layer": "layer_inputs_embed",
        "per_layer_model_projection": "layer_inputs_project",
        "per_layer_projection_norm": "layer_inputs_norm",
    },
    layer_modules={
        **SANDWICH_NAMES.layer_modules,
        "per_layer_input_gate": ("side_gate", None),
        "per_layer_projection": ("side_out", None),
        "post_per_layer_input_norm": ("side_norm", None),
        "router.proj": ("router", None),
        "post_feedforward_layernorm_1": ("dense_out_norm", None),
        "pre_feedforward_layernorm_2": ("experts_norm", None),
        "post_feedforward_layernorm_2": ("experts_out_norm", None),
    },
    layer_tensors={
        "layer_scalar": "output_scale",
        "router.scale": "router_norm",
        "router.per_expert_scale": "expert_scales",
        "experts.gate_up_proj": "experts_up",
        "experts.down_proj": "experts_down",
    },
    # Of layers that attend to the keys and values of another.
    unused=("self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm"),
)
MULTIMODAL_NAMES = replace(
    NAMES,
    text_prefixes=("model.language_model.",),
    skipped=("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."),
)


def _gemma4(fields: ConfigFields) -> DecoderSpec:
    if fields.raw("use_bidirectional_attention") == "all":
        raise fields.unsupported("use_bidirectional_attention", "null, vision")
    layer_types = _layer_types(fields)
    bias = fields.flag("attention_bias")
    windows = layer_windows(layer_types, read_window(fields))
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias)
    norm = NormSpec("rms", fields.number("rms_norm_eps"), float32_weight=True)
    layers = tuple(_layer(fields, layer_types, index, layer, norm) for index, layer in enumerate(spec.layers))
    return replace(
        spec,
        layers=layers,
        final_norm=norm,
        embedding_scale=math.sqrt(spec.hidden_size),
        rounds_embedding_scale=True,
        layer_inputs=_layer_inputs(fields, len(layers), norm),
        logit_softcap=fields.number("final_logit_softcapping", 0.0),
    )


def _layer_types(fields: ConfigFields) -> Sequence[str]:
    """As stated, or every sixth layer attends to all tokens; the last one does in any case."""
    return (*every_nth_full(fields, PATTERN)[:-1], "full_attention")


def _layer(fields: ConfigFields, layer_types: Sequence[str], index: int, layer: LayerSpec, norm: NormSpec) -> LayerSpec:
    activation = read_activation(fields, "hidden_activation", gated=True)
    is_full = layer_types[index] == "full_attention"
    head_dim, num_kv_heads = _head_sizes(fields, index, is_full)
    scaling = fields.section("rope_parameters").section(layer_types[index])
    mlp = replace(cast(MlpSpec, layer.feed_forward), activation=activation)
    cache_of = _cache_of(fields, layer_types, index)
    if cache_of is not None and fields.flag("use_double_wide_mlp"):
        mlp = replace(mlp, intermediate_size=2 * mlp.intermediate_size)
    attention = replace(
        cast(AttentionSpec, layer.mixer),
        head_dim=head_dim,
        num_kv_heads=num_kv_heads,
        scale=1.0,
        rope=read_rope(fields, head_dim, is_partial=True, scaling=scaling),
        qk_norm=norm,
        cache_of=cache_of,
        v_norm=norm if cache_of is None else None,
        value_is_key=is_full and fields.flag("attention_k_eq_v"),
    )
    width = fields.count("hidden_size_per_layer_input", 0)
    has_experts = fields.flag("enable_moe_block")
    return replace(
        layer,
        mixer=attention,
        feed_forward=_with_experts(fields, mlp, norm) if has_experts else mlp,
        norm=norm,
        wiring="sandwich_own_norms" if has_experts else "sandwich",
        side_input=SideInputSpec(index, width, activation, norm) if width else None,
        output_scale=True,
    )


def _with_experts(fields: ConfigFields, mlp: MlpSpec, norm: NormSpec) -> ParallelExpertsSpec:
    if mlp.activation not in ("silu", "gelu_tanh"):
        raise fields.unsupported("hidden_activation", "silu, gelu_pytorch_tanh where enable_moe_block is true")
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("moe_intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts, "top_k_experts"), renormalise=True),
        gate=mlp.activation,
        expert_scales=True,
    )
    return ParallelExpertsSpec(mlp, moe, norm)


def _cache_of(fields: ConfigFields, layer_types: Sequence[str], index: int) -> int | None:
    """The last layer of the same type that has keys and values of its own, if this one has none."""
    num_owners = len(layer_types) - fields.count("num_kv_shared_layers")
    if index < num_owners:
        return None
    owners = [i for i in range(num_owners) if layer_types[i] == layer_types[index]]
    if not owners:
        raise fields.malformed("num_kv_shared_layers", "must leave a layer of each type that has keys and values")
    return owners[-1]


def _head_sizes(fields: ConfigFields, index: int, is_full: bool) -> tuple[int, int]:
    """Size of the layer's heads, and its number of KV heads.

    transformers writes what differs from other layers into per_layer_config; published checkpoints have a field each
    for the layers without a window.
    """
    head_dim, num_kv_heads = fields.integer("head_dim"), fields.integer("num_key_value_heads")
    if "per_layer_config" in fields:
        # Layers are named by their index, padded with zeros to the length of the last one's.
        padded = str(index).zfill(len(str(fields.integer("num_hidden_layers") - 1)))
        own = fields.section("per_layer_config").section(padded)
        head_dim = own.integer("head_dim", head_dim)
        num_kv_heads = own.integer("num_key_value_heads", num_kv_heads)
    elif is_full:
        head_dim = fields.integer("global_head_dim", head_dim)
        if fields.flag("attention_k_eq_v"):
            num_kv_heads = fields.integer("num_global_key_value_heads", num_kv_heads)
    num_heads = fields.integer("num_attention_heads")
    if num_heads % num_kv_heads:
        raise fields.malformed("num_global_key_value_heads", f"must divide num_attention_heads, {num_heads}")
    return head_dim, num_kv_heads


def _layer_inputs(fields: ConfigFields, num_layers: int, norm: NormSpec) -> LayerInputsSpec | None:
    width = fields.count("hidden_size_per_layer_input", 0)
    if width == 0:
        return None
    vocab_size = fields.integer("vocab_size_per_layer_input")
    if vocab_size < fields.integer("vocab_size"):
        raise fields.malformed("vocab_size_per_layer_input", "must be vocab_size at least")
    return LayerInputsSpec(num_layers, vocab_size, width, norm)


GEMMA4_TEXT = Family(_gemma4, NAMES, "gemma4_text", DEFAULTS)
GEMMA4 = Family(_gemma4, MULTIMODAL_NAMES, "gemma4", DEFAULTS, text_section="text_config")
