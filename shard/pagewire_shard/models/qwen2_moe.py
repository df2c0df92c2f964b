"""Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2 with a mixture of experts, and a weighted shared expert, in place of
the MLP of some or all layers."""

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.block import FeedForwardSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec, SharedExpertSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import check_silu, expert_names, read_top_k, with_feed_forward
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import llama_spec
from pagewire_shard.models.qwen2 import QWEN2_DEFAULTS, read_windows

DEFAULTS: dict[str, object] = {
    **QWEN2_DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "qkv_bias": True,
}
NAMES = expert_names("mlp.shared_expert", modules={"mlp.shared_expert_gate": "shared_weight"})


def with_experts(fields: ConfigFields, spec: DecoderSpec, experts: FeedForwardSpec) -> DecoderSpec:
    """The decoder with experts in the layers for which decoder_sparse_step and mlp_only_layers ask for them."""
    dense = set(fields.integers("mlp_only_layers"))
    step = fields.integer("decoder_sparse_step")
    return with_feed_forward(spec, experts, lambda index: index not in dense and (index + 1) % step == 0)


def _qwen2_moe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("moe_intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=fields.flag("norm_topk_prob")),
    )
    shared = MlpSpec(fields.integer("shared_expert_intermediate_size"), "silu", gated=True, bias=False)
    spec = llama_spec(fields, windows=read_windows(fields), qkv_bias=fields.flag("qkv_bias"), o_bias=False)
    return with_experts(fields, spec, SharedExpertSpec(moe, shared, is_weighted=True))


QWEN2_MOE = Family(_qwen2_moe, NAMES, "qwen2_moe", DEFAULTS)
