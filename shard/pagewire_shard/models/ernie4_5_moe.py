"""ERNIE 4.5 with experts: ERNIE 4.5 with a mixture in some layers, whose softmax is corrected for the choice, and
perhaps shared experts."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.ernie4_5 import DEFAULTS as DENSE_DEFAULTS
from pagewire_shard.models.ernie4_5 import ernie4_5_spec
from pagewire_shard.models.experts import (
    check_silu,
    expert_names,
    read_top_k,
    with_feed_forward,
    with_shared_expert,
)
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields

CORRECTIONS = ("mlp.moe_statics.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias")
NAMES = replace(expert_names("mlp.shared_experts", correction=CORRECTIONS), skipped=("model.mtp_",))
DEFAULTS: dict[str, object] = {
    **DENSE_DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": None,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
}
ALIASES = {
    "num_experts": "moe_num_experts",
    "num_local_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_k",
}


def _ernie4_5_moe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("moe_num_experts")
    size = fields.integer("moe_intermediate_size")
    router = RouterSpec(
        read_top_k(fields, num_experts, "moe_k"), renormalise=True, min_total=fields.positive_number("moe_norm_min")
    )
    moe = MoeSpec(num_experts, size, router, has_correction=True, float32_router=True)
    bias = fields.flag("use_bias")
    experts = with_shared_expert(moe, size * fields.count("moe_num_shared_experts"), bias=bias)
    interval, first = fields.integer("moe_layer_interval"), fields.count("moe_layer_start_index")
    num_layers = fields.integer("num_hidden_layers")
    # -1 stands for the last layer.
    last = num_layers - 1 if fields.number("moe_layer_end_index") == -1 else fields.count("moe_layer_end_index")
    spec = replace(ernie4_5_spec(fields), lm_head_bias=bias)
    return with_feed_forward(spec, experts, lambda index: first <= index <= last and (index + 1) % interval == 0)


ERNIE4_5_MOE = Family(_ernie4_5_moe, NAMES, "ernie4_5_moe", DEFAULTS, ALIASES)
