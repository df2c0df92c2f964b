"""Mellum 2: Qwen3-MoE's shape with a sliding window and a rotary embedding of their own on some layers."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import EXPERT_NAMES, check_silu, read_mlp_layer_types, read_top_k, with_feed_forward
from pagewire_shard.models.family import Family, layer_windows, read_head_dim, read_layer_types, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec, with_mixers
from pagewire_shard.models.rope import max_position, read_rope_of_type

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
    "moe_intermediate_size": 896,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "eos_token_id": None,
}
NAMES = replace(EXPERT_NAMES, skipped=("mtp.",))


def _mellum(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    layer_types = read_layer_types(fields) or ("full_attention",) * fields.integer("num_hidden_layers")
    windows = layer_windows(layer_types, read_window(fields))
    bias = fields.flag("attention_bias")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm=True)

    def rotated(index: int, attention: AttentionSpec) -> AttentionSpec:
        return replace(attention, rope=read_rope_of_type(fields, attention.head_dim, layer_types[index]))

    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("moe_intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=fields.flag("norm_topk_prob")),
    )
    is_sparse = read_mlp_layer_types(fields, num_dense=0)
    head_dim = read_head_dim(fields, fields.integer("num_attention_heads"))
    spec = with_feed_forward(with_mixers(spec, rotated), moe, is_sparse.__getitem__)
    return replace(spec, max_position=max_position(fields, read_rope_of_type(fields, head_dim, "full_attention")))


MELLUM = Family(_mellum, NAMES, "mellum", DEFAULTS, {"num_local_experts": "num_experts"})
