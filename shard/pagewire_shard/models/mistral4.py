"""Mistral 4: DeepSeek-V3's shape with a softmax router, and queries that are scaled by their positions."""

from dataclasses import replace
from typing import cast

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.latent_attention import LatentAttentionSpec
from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import (
    check_silu,
    expert_names,
    read_sigmoid_router,
    with_feed_forward,
    with_shared_expert,
)
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.latent import LATENT_DEFAULTS, latent_spec, with_latent_attention
from pagewire_shard.models.ministral3 import read_position_scale

NAMES = with_latent_attention(expert_names("mlp.shared_experts"))
DEFAULTS: dict[str, object] = {
    **LATENT_DEFAULTS,
    "vocab_size": 131072,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 36,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 64,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 0,
    "norm_topk_prob": True,
    "max_position_embeddings": 1048576,
    "rope_parameters": {
        "type": "yarn",
        "rope_theta": 10000.0,
        "factor": 128.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "rope_interleave": True,
}


def _router(fields: ConfigFields, num_experts: int) -> RouterSpec:
    """DeepSeek-V3's with softmax scores."""
    return replace(read_sigmoid_router(fields, num_experts), scoring="softmax")


def _mistral4(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    scale = read_position_scale(fields)
    spec = latent_spec(fields, interleaved=fields.flag("rope_interleave"), is_partial=True)
    layers = (
        replace(layer, mixer=replace(cast(LatentAttentionSpec, layer.mixer), scaled_by_position=scale is not None))
        for layer in spec.layers
    )
    spec = replace(spec, layers=tuple(layers), position_scale=scale)
    num_experts, size = fields.integer("n_routed_experts"), fields.integer("moe_intermediate_size")
    moe = MoeSpec(num_experts, size, _router(fields, num_experts))
    num_dense = fields.count("first_k_dense_replace")
    experts = with_shared_expert(moe, size * fields.integer("n_shared_experts"))
    return with_feed_forward(spec, experts, lambda index: index >= num_dense)


MISTRAL4 = Family(_mistral4, NAMES, "mistral4", DEFAULTS, {"num_local_experts": "n_routed_experts"})
