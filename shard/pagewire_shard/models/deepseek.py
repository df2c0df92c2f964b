"""DeepSeek-V3 and R1, and Kimi-K2, which is stored under the same name: multi-head latent attention, and after the
first layers a mixture of experts beside shared ones. DeepSeek-V2: the same with a softmax router. GLM-4.7-Flash:
DeepSeek-V3's shape with a list of which layers have experts."""

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.block import FeedForwardSpec
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
from pagewire_shard.models.latent import LATENT_DEFAULTS, latent_spec, with_latent_attention

NAMES = with_latent_attention(
    expert_names("mlp.shared_experts", correction=("mlp.gate.e_score_correction_bias",), mtp_layers=True)
)
V3_DEFAULTS: dict[str, object] = {
    **LATENT_DEFAULTS,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rope_interleave": True,
    "eos_token_id": 1,
}
GLM_LITE_DEFAULTS: dict[str, object] = {
    **V3_DEFAULTS,
    "vocab_size": 154880,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.8,
    "q_lora_rank": 768,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-05,
    "mlp_layer_types": None,
}
V2_DEFAULTS: dict[str, object] = {
    **LATENT_DEFAULTS,
    "vocab_size": 102400,
    "first_k_dense_replace": 0,
    "n_group": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.0,
    "topk_group": None,
    "topk_method": "greedy",
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
}
V3_ALIASES = {"num_local_experts": "n_routed_experts"}
GLM_LITE_ALIASES = {**V3_ALIASES, "head_dim": "qk_rope_head_dim"}
V2_ALIASES = {"num_experts": "n_routed_experts"}


def _v3_experts(fields: ConfigFields) -> FeedForwardSpec:
    return read_sigmoid_mixture(fields, fields.integer("n_routed_experts"), fields.integer("n_shared_experts"))


def _deepseek_v3(fields: ConfigFields) -> DecoderSpec:
    spec = latent_spec(fields, interleaved=fields.flag("rope_interleave"))
    num_dense = fields.count("first_k_dense_replace")
    return with_feed_forward(spec, _v3_experts(fields), lambda index: index >= num_dense)


def _glm4_moe_lite(fields: ConfigFields) -> DecoderSpec:
    spec = latent_spec(fields, interleaved=fields.flag("rope_interleave"))
    return with_feed_forward(spec, _v3_experts(fields), read_mlp_layer_types(fields, num_dense=1).__getitem__)


def _v2_router(fields: ConfigFields, num_experts: int) -> RouterSpec:
    """The best experts by softmax, perhaps within the groups that have the best ones."""
    method = fields.text("topk_method")
    scale = fields.number("routed_scaling_factor")
    if method == "greedy":
        return RouterSpec(read_top_k(fields, num_experts), scale=scale)
    if method != "group_limited_greedy":
        raise fields.unsupported("topk_method", "greedy, group_limited_greedy")
    num_groups, top_groups = fields.integer("n_group"), fields.integer("topk_group")
    if num_experts % num_groups:
        raise fields.malformed("n_group", f"must divide n_routed_experts, {num_experts}")
    if top_groups > num_groups:
        raise fields.malformed("topk_group", f"must be at most n_group, {num_groups}")
    top_k = read_top_k(fields, num_experts // num_groups * top_groups)
    return RouterSpec(top_k, scale=scale, num_groups=num_groups, top_groups=top_groups, group_best=1)


def _deepseek_v2(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("n_routed_experts")
    size = fields.integer("moe_intermediate_size")
    bias = fields.flag("mlp_bias")
    moe = MoeSpec(num_experts, size, _v2_router(fields, num_experts), float32_router=True)
    experts = with_shared_expert(moe, size * fields.integer("n_shared_experts"), bias=bias)
    spec = latent_spec(fields, interleaved=True, mlp_bias=bias)
    num_dense = fields.count("first_k_dense_replace")
    return with_feed_forward(spec, experts, lambda index: index >= num_dense)


DEEPSEEK_V2 = Family(_deepseek_v2, NAMES, "deepseek_v2", V2_DEFAULTS, V2_ALIASES)
DEEPSEEK_V3 = Family(_deepseek_v3, NAMES, "deepseek_v3", V3_DEFAULTS, V3_ALIASES)
GLM4_MOE_LITE = Family(_glm4_moe_lite, NAMES, "glm4_moe_lite", GLM_LITE_DEFAULTS, GLM_LITE_ALIASES)
