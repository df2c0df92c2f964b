"""AFMoE (Trinity): gated attention with norms of queries and keys, a window and rotation on three of four layers, norms
around every block, and a mixture of experts with a corrected router on all layers but the first ones."""

import math
from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import expert_names, read_sigmoid_mixture, read_top_k, with_feed_forward
from pagewire_shard.models.family import Family, every_nth_full, layer_windows, read_window, refuse
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec, with_mixers

_EXPERT_NAMES = expert_names(
    "mlp.shared_experts", correction=("mlp.expert_bias",), modules={"mlp.router.gate": "router"}
)
NAMES = replace(
    _EXPERT_NAMES,
    layer_modules={
        **_EXPERT_NAMES.layer_modules,
        "self_attn.gate_proj": ("qkv", 1),
        "self_attn.k_proj": ("qkv", 2),
        "self_attn.v_proj": ("qkv", 3),
        "post_attention_layernorm": ("mixer_out_norm", None),
        "pre_mlp_layernorm": ("feed_forward_norm", None),
        "post_mlp_layernorm": ("feed_forward_out_norm", None),
    },
)
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 200192,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 1408,
    "num_dense_layers": 1,
    "num_attention_heads": 16,
    "head_dim": 128,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-05,
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "num_shared_experts": 2,
    "route_scale": 1.0,
    "global_attn_every_n_layers": 4,
    "sliding_window": 1024,
    "mup_enabled": False,
    "eos_token_id": None,
}


def _afmoe(fields: ConfigFields) -> DecoderSpec:
    refuse(fields, "attention_bias", accepted=False)
    layer_types = every_nth_full(fields, fields.integer("global_attn_every_n_layers"))
    windows = layer_windows(layer_types, read_window(fields))
    spec = llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False, qk_norm=True)
    norm = replace(spec.layers[0].norm, float32_weight=True)

    def change(index: int, attention: AttentionSpec) -> AttentionSpec:
        rope = attention.rope if layer_types[index] == "sliding_attention" else None
        return replace(attention, rope=rope, qk_norm=norm, output_gate=True, gate_is_stored_apart=True)

    spec = with_mixers(spec, change)
    num_experts, num_dense = fields.integer("num_experts"), fields.count("num_dense_layers")
    top_k = read_top_k(fields, num_experts)
    router = RouterSpec(top_k, "sigmoid", renormalise=True, scale=fields.number("route_scale"))
    experts = read_sigmoid_mixture(fields, num_experts, fields.count("num_shared_experts"), router)
    spec = with_feed_forward(spec, experts, lambda index: index >= num_dense)
    return replace(
        spec,
        layers=tuple(replace(layer, norm=norm, wiring="sandwich") for layer in spec.layers),
        final_norm=norm,
        embedding_scale=math.sqrt(spec.hidden_size) if fields.flag("mup_enabled") else 1.0,
    )


AFMOE = Family(_afmoe, NAMES, "afmoe", DEFAULTS)
