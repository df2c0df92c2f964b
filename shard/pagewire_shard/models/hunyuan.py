"""Hunyuan: Llama's shape with norms of each head's query and key after the rotation; dense, or with a mixture of
experts beside a shared one in every layer. HY 3: Llama's shape with norms before the rotation, and after the first
layer a corrected mixture beside a shared expert."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import (
    check_silu,
    expert_names,
    read_mlp_layer_types,
    read_sigmoid_mixture,
    read_top_k,
    with_feed_forward,
    with_shared_expert,
)
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers
from pagewire_shard.models.rope import scaling_of

HEAD_NORMS = {"self_attn.query_layernorm": "q_norm", "self_attn.key_layernorm": "k_norm"}
DENSE_NAMES = replace(
    LLAMA_NAMES,
    layer_modules={**LLAMA_NAMES.layer_modules, **{name: (target, None) for name, target in HEAD_NORMS.items()}},
)
MOE_NAMES = expert_names("mlp.shared_mlp", modules={**HEAD_NORMS, "mlp.gate.wg": "router"})
HY3_NAMES = expert_names(
    "mlp.shared_mlp",
    correction=("mlp.expert_bias", "mlp.e_score_correction_bias"),
    modules={"mlp.router.gate": "router"},
    mtp_layers=True,
)
DENSE_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 290943,
    "rms_norm_eps": 1e-05,
}
MOE_DEFAULTS: dict[str, object] = {**DENSE_DEFAULTS, "num_experts": 1, "moe_topk": 1}
MOE_ALIASES = {"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"}
HY3_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 120832,
    "intermediate_size": 13312,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "initializer_range": 0.006,
    "rms_norm_eps": 1e-05,
    "rope_theta": 11158840.0,
    "num_experts": 192,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 1536,
    "router_scaling_factor": 2.826,
    "eos_token_id": None,
}


def _hunyuan(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    windows = [0] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm=True)
    alpha = scaling_of(fields).number("alpha", 0.0)

    def change(_: int, attention: AttentionSpec) -> AttentionSpec:
        assert attention.rope is not None
        rope = attention.rope
        if alpha:
            # A fixed stretch of the base, under the name of a dynamic one.
            rope = replace(rope, theta=rope.theta * alpha ** (rope.rotary_dim / (rope.rotary_dim - 2)))
        return replace(attention, rope=rope, qk_norm_after_rope=True)

    return with_mixers(spec, change)


def _hunyuan_moe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts, size = fields.integer("num_experts"), fields.integer("intermediate_size")
    spec = _hunyuan(fields)
    layers = []
    for index, layer in enumerate(spec.layers):
        top_k = read_top_k(fields.item("moe_topk", index), num_experts, "moe_topk")
        router = RouterSpec(top_k, renormalise=True)
        moe = MoeSpec(num_experts, size, router, float32_router=True)
        layers.append(replace(layer, feed_forward=with_shared_expert(moe, size)))
    return replace(spec, layers=tuple(layers))


def _hy_v3(fields: ConfigFields) -> DecoderSpec:
    num_experts = fields.integer("num_experts")
    router = RouterSpec(
        read_top_k(fields, num_experts), "sigmoid", renormalise=True, scale=fields.number("router_scaling_factor")
    )
    experts = read_sigmoid_mixture(fields, num_experts, fields.integer("num_shared_experts"), router)
    bias, mlp_bias = fields.flag("attention_bias"), fields.flag("mlp_bias")
    if mlp_bias:
        raise fields.unsupported("mlp_bias", "false")
    windows = [0] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm=True)
    is_sparse = read_mlp_layer_types(fields, num_dense=1)
    return with_feed_forward(spec, experts, is_sparse.__getitem__)


HUNYUAN = Family(_hunyuan, DENSE_NAMES, "hunyuan_v1_dense", DENSE_DEFAULTS)
HUNYUAN_MOE = Family(_hunyuan_moe, MOE_NAMES, "hunyuan_v1_moe", MOE_DEFAULTS, MOE_ALIASES)
HY_V3 = Family(_hy_v3, HY3_NAMES, "hy_v3", HY3_DEFAULTS, {"num_local_experts": "num_experts"})
