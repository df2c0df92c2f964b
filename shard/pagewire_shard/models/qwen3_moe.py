"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the MLP of some or all layers."""

from dataclasses import replace

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, llama_spec
from pagewire_shard.models.mixtral import FUSED_NAMES, check_silu, read_top_k
from pagewire_shard.models.qwen2 import QWEN2_DEFAULTS

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

NAMES = replace(
    LLAMA_NAMES,
    layer_modules={**LLAMA_NAMES.layer_modules, "mlp.gate": ("router", None)},
    experts={
        "mlp.experts.{}.gate_proj": ("experts_up", 2, 0),
        "mlp.experts.{}.up_proj": ("experts_up", 2, 1),
        "mlp.experts.{}.down_proj": ("experts_down", 1, 0),
    },
    fused_experts=FUSED_NAMES,
)


def _qwen3_moe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        top_k=read_top_k(fields, num_experts),
        intermediate_size=fields.integer("moe_intermediate_size"),
        renormalise=fields.flag("norm_topk_prob"),
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
    dense = set(fields.integers("mlp_only_layers"))
    step = fields.integer("decoder_sparse_step")
    layers = (
        layer if index in dense or (index + 1) % step else replace(layer, feed_forward=moe)
        for index, layer in enumerate(spec.layers)
    )
    return replace(spec, layers=tuple(layers))


QWEN3_MOE = Family(_qwen3_moe, NAMES, "qwen3_moe", DEFAULTS, ALIASES)
