"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the MLP of some or all layers."""

from dataclasses import replace

from pagewire_shard.loading.hf_config import ConfigFields
from pagewire_shard.models.family import Family, read_window
from pagewire_shard.models.llama import LLAMA_NAMES, llama_spec
from pagewire_shard.models.mixtral import FUSED_NAMES, check_silu, read_top_k
from pagewire_shard.models.spec import DecoderSpec, MoeSpec

DEFAULT_NUM_EXPERTS = 128
DEFAULT_TOP_K = 8
DEFAULT_EXPERT_SIZE = 768
DEFAULT_SLIDING_WINDOW = 4096

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
    # Newer versions of transformers save num_experts under another name.
    name = "num_local_experts" if "num_local_experts" in fields else "num_experts"
    num_experts = fields.integer(name, DEFAULT_NUM_EXPERTS)
    moe = MoeSpec(
        num_experts=num_experts,
        top_k=read_top_k(fields, num_experts, DEFAULT_TOP_K),
        intermediate_size=fields.integer("moe_intermediate_size", DEFAULT_EXPERT_SIZE),
        renormalise=fields.flag("norm_topk_prob", False),
    )
    window = read_window(fields, DEFAULT_SLIDING_WINDOW) if fields.flag("use_sliding_window", False) else 0
    attention_bias = fields.flag("attention_bias", False)
    spec = llama_spec(
        fields,
        windows=[window] * fields.integer("num_hidden_layers"),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        qk_norm=True,
    )
    dense = set(fields.integers("mlp_only_layers"))
    step = fields.integer("decoder_sparse_step", 1)
    layers = (
        layer if index in dense or (index + 1) % step else replace(layer, mlp=moe)
        for index, layer in enumerate(spec.layers)
    )
    return replace(spec, layers=tuple(layers))


QWEN3_MOE = Family(_qwen3_moe, NAMES)
