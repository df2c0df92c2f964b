"""GLM-4: Llama's shape with half of each head rotated, interleaved. The 0414 models norm what attention and MLP yield,
too."""

from dataclasses import replace

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec
from pagewire_shard.models.phi3 import FUSED_GATE_UP

GLM_NAMES = replace(LLAMA_NAMES, layer_modules=FUSED_GATE_UP)
GLM4_NAMES = replace(
    LLAMA_NAMES,
    layer_modules={
        **FUSED_GATE_UP,
        "post_self_attn_layernorm": ("mixer_out_norm", None),
        "post_mlp_layernorm": ("feed_forward_out_norm", None),
    },
)
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
}


def _glm(fields: ConfigFields) -> DecoderSpec:
    return llama_spec(
        fields,
        windows=[0] * fields.integer("num_hidden_layers"),
        qkv_bias=fields.flag("attention_bias"),
        o_bias=False,
        is_partial=True,
        interleaved=True,
    )


def _glm4(fields: ConfigFields) -> DecoderSpec:
    spec = _glm(fields)
    return replace(spec, layers=tuple(replace(layer, wiring="sandwich") for layer in spec.layers))


GLM = Family(_glm, GLM_NAMES, "glm", DEFAULTS)
GLM4 = Family(_glm4, GLM4_NAMES, "glm4", DEFAULTS)
