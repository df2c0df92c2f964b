"""Falcon-H1: attention and Mamba-2 side by side in every layer, and multipliers nearly everywhere."""

from dataclasses import replace
from typing import Literal, cast

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mamba2 import Mamba2Spec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.parallel_mixers import ParallelMixersSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec
from pagewire_shard.models.ssm import MAMBA_DEFAULTS, read_mamba, read_scales, ssm_modules, ssm_tensors

FEED_FORWARD_MODULES: dict[str, tuple[str, int | None]] = {
    "pre_ff_layernorm": ("feed_forward_norm", None),
    "feed_forward.gate_proj": ("up", 0),
    "feed_forward.up_proj": ("up", 1),
    "feed_forward.down_proj": ("down", None),
}
NAMES = replace(
    LLAMA_NAMES,
    modules={"embed_tokens": "embed", "final_layernorm": "final_norm", "lm_head": "lm_head"},
    layer_modules={**LLAMA_NAMES.layer_modules, **FEED_FORWARD_MODULES, **ssm_modules("mamba")},
    layer_tensors=ssm_tensors("mamba"),
)
"""Bamba's too."""
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    **MAMBA_DEFAULTS,
    "vocab_size": 128000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 8192,
    "mamba_d_ssm": 1024,
    "mamba_norm_before_gate": True,
    "mamba_rms_norm": False,
    "projectors_bias": False,
    "lm_head_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "key_multiplier": 1.0,
    "attention_in_multiplier": 1.0,
    "attention_out_multiplier": 1.0,
    "ssm_in_multiplier": 1.0,
    "ssm_out_multiplier": 1.0,
}


def _falcon_h1(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    spec = llama_spec(
        fields,
        windows=[0] * fields.integer("num_hidden_layers"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
    )
    mixer = _read_mixer(fields, cast(AttentionSpec, spec.layers[0].mixer), spec.hidden_size)
    gate_scale, output_scale = read_scales(fields, "mlp_multipliers", 2)
    mlp = cast(MlpSpec, spec.layers[0].feed_forward)
    mlp = replace(mlp, gate_scale=gate_scale, output_scale=output_scale)
    return replace(
        spec,
        layers=tuple(LayerSpec(mixer, mlp, layer.norm) for layer in spec.layers),
        embedding_scale=fields.number("embedding_multiplier"),
        logit_scale=fields.number("lm_head_multiplier"),
    )


def _read_mixer(fields: ConfigFields, attention: AttentionSpec, hidden_size: int) -> ParallelMixersSpec:
    # A factor of the input is one of queries, keys and values, and of all that Mamba-2 projects it to.
    input_scale = _input_scale(fields, "attention_in_multiplier", "attention_bias")
    scale = attention.scale * input_scale**2 * fields.positive_number("key_multiplier")
    return ParallelMixersSpec(
        attention=replace(attention, scale=scale),
        ssm=_read_ssm(fields, hidden_size),
        attention_scale=input_scale * fields.number("attention_out_multiplier"),
        ssm_scale=fields.number("ssm_out_multiplier"),
    )


def _read_ssm(fields: ConfigFields, hidden_size: int) -> Mamba2Spec:
    inner_size = fields.integer("mamba_d_ssm", fields.integer("mamba_expand") * hidden_size)
    input_scale = _input_scale(fields, "ssm_in_multiplier", "mamba_proj_bias")
    gate, x, b, c, dt = (input_scale * scale for scale in read_scales(fields, "ssm_multipliers", 5))
    norm: Literal["gated", "before_gate", "none"] = "none"
    if fields.flag("mamba_rms_norm"):
        norm = "before_gate" if fields.flag("mamba_norm_before_gate") else "gated"
    return replace(
        read_mamba(fields, inner_size),
        norm=norm,
        out_bias=fields.flag("projectors_bias"),
        input_scales=(gate, x, b, c, dt),
    )


def _input_scale(fields: ConfigFields, name: str, bias: str) -> float:
    """A factor of a product's input, which is one of the product unless that has a bias."""
    scale = fields.positive_number(name)
    if scale != 1.0 and fields.flag(bias):
        raise fields.unsupported(name, f"1.0 with {bias}")
    return scale


FALCON_H1 = Family(_falcon_h1, NAMES, "falcon_h1", DEFAULTS)
