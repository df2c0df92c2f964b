"""Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2 with a mixture of experts, and a weighted shared expert, in place of
the MLP of some or all layers."""

from dataclasses import replace

from pagewire_shard.layers.block import FeedForwardSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec, SharedExpertSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, llama_spec
from pagewire_shard.models.mixtral import FUSED_NAMES, check_silu, read_top_k
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
EXPERT_NAMES = replace(
    LLAMA_NAMES,
    layer_modules={**LLAMA_NAMES.layer_modules, "mlp.gate": ("router", None)},
    experts={
        "mlp.experts.{}.gate_proj": ("experts_up", 2, 0),
        "mlp.experts.{}.up_proj": ("experts_up", 2, 1),
        "mlp.experts.{}.down_proj": ("experts_down", 1, 0),
    },
    fused_experts=FUSED_NAMES,
)
NAMES = replace(
    EXPERT_NAMES,
    layer_modules={
        **EXPERT_NAMES.layer_modules,
        "mlp.shared_expert.gate_proj": ("shared_up", 0),
        "mlp.shared_expert.up_proj": ("shared_up", 1),
        "mlp.shared_expert.down_proj": ("shared_down", None),
        "mlp.shared_expert_gate": ("shared_weight", None),
    },
)


def with_experts(fields: ConfigFields, spec: DecoderSpec, experts: FeedForwardSpec) -> DecoderSpec:
    """The decoder with experts in the layers for which decoder_sparse_step and mlp_only_layers ask for them."""
    dense = set(fields.integers("mlp_only_layers"))
    step = fields.integer("decoder_sparse_step")
    layers = (
        layer if index in dense or (index + 1) % step else replace(layer, feed_forward=experts)
        for index, layer in enumerate(spec.layers)
    )
    return replace(spec, layers=tuple(layers))


def _qwen2_moe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        top_k=read_top_k(fields, num_experts),
        intermediate_size=fields.integer("moe_intermediate_size"),
        renormalise=fields.flag("norm_topk_prob"),
    )
    shared = MlpSpec(fields.integer("shared_expert_intermediate_size"), "silu", gated=True, bias=False)
    spec = llama_spec(fields, windows=read_windows(fields), qkv_bias=fields.flag("qkv_bias"), o_bias=False)
    return with_experts(fields, spec, SharedExpertSpec(moe, shared, is_weighted=True))


QWEN2_MOE = Family(_qwen2_moe, NAMES, "qwen2_moe", DEFAULTS)
