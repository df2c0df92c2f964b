"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the MLP of some or all layers."""

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import EXPERT_NAMES, check_silu, read_top_k
from pagewire_shard.models.family import Family, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import llama_spec
from pagewire_shard.models.qwen2 import QWEN2_DEFAULTS
from pagewire_shard.models.qwen2_moe import with_experts

DEFAULTS: dict[str, object] = {
    **QWEN2_DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
}
# Newer versions of transformers save it under this name.
ALIASES = {"num_local_experts": "num_experts"}


def _qwen3_moe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("moe_intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=fields.flag("norm_topk_prob")),
    )
    window = read_window(fields) if fields.flag("use_sliding_window") else 0
    attention_bias = fields.flag("attention_bias")
    spec = llama_spec(
        fields,
        windows=[window] * fields.integer("num_hidden_layers"),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        qk_norm=True,
    )
    return with_experts(fields, spec, moe)


QWEN3_MOE = Family(_qwen3_moe, EXPERT_NAMES, "qwen3_moe", DEFAULTS, ALIASES)
