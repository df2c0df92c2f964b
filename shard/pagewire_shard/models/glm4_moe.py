"""GLM-4.5 to 4.7: Llama's shape with half of each head rotated, perhaps norms of each head's query and key, and after
the first layers a mixture of experts beside a shared one. Solar Open: the same without dense layers and norms."""

from pagewire_shard.layers.block import FeedForwardSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import expert_names, read_sigmoid_mixture, with_feed_forward
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec

NAMES = expert_names("mlp.shared_experts", correction=("mlp.gate.e_score_correction_bias",), mtp_layers=True)
SOLAR_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 196608,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "moe_intermediate_size": 1280,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "eos_token_id": None,
}
GLM_DEFAULTS: dict[str, object] = {
    **SOLAR_DEFAULTS,
    "vocab_size": 151552,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "head_dim": None,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "use_qk_norm": False,
}
ALIASES = {"num_local_experts": "n_routed_experts"}


def _experts(fields: ConfigFields) -> FeedForwardSpec:
    return read_sigmoid_mixture(fields, fields.integer("n_routed_experts"), fields.integer("n_shared_experts"))


def _glm4_moe(fields: ConfigFields) -> DecoderSpec:
    spec = llama_spec(
        fields,
        windows=[0] * fields.integer("num_hidden_layers"),
        qkv_bias=fields.flag("attention_bias"),
        o_bias=False,
        qk_norm=fields.flag("use_qk_norm"),
        is_partial=True,
    )
    num_dense = fields.count("first_k_dense_replace")
    return with_feed_forward(spec, _experts(fields), lambda index: index >= num_dense)


def _solar_open(fields: ConfigFields) -> DecoderSpec:
    windows = [0] * fields.integer("num_hidden_layers")
    bias = fields.flag("attention_bias")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=False, is_partial=True)
    return with_feed_forward(spec, _experts(fields), lambda _: True)


GLM4_MOE = Family(_glm4_moe, NAMES, "glm4_moe", GLM_DEFAULTS, ALIASES)
SOLAR_OPEN = Family(_solar_open, NAMES, "solar_open", SOLAR_DEFAULTS, ALIASES)
