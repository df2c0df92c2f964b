"""OLMoE: Llama's shape with a mixture of experts in place of every MLP, and norms over all queries and all keys.
FlexOLMo: the same with norms on what attention and experts yield, as OLMo 2 has them."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import EXPERT_NAMES, check_silu, read_top_k
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec, with_mixers
from pagewire_shard.models.olmo2 import OUTPUT_NORMS

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "clip_qkv": None,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "eos_token_id": 50279,
}
FLEX_DEFAULTS: dict[str, object] = {
    **DEFAULTS,
    "vocab_size": 100352,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_theta": 500000.0,
    "num_experts": 7,
    "num_experts_per_tok": 5,
    "eos_token_id": 100257,
}
FLEX_NAMES = replace(EXPERT_NAMES, layer_modules={**EXPERT_NAMES.layer_modules, **OUTPUT_NORMS})
ALIASES = {"num_local_experts": "num_experts"}


def _olmoe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    clip = fields.positive_number("clip_qkv") if "clip_qkv" in fields else 0.0
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=fields.flag("norm_topk_prob")),
    )
    bias = fields.flag("attention_bias")
    spec = llama_spec(fields, windows=[0] * fields.integer("num_hidden_layers"), qkv_bias=bias, o_bias=bias)
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    spec = with_mixers(
        spec, lambda _, attention: replace(attention, qk_norm=norm, qk_norm_scope="all_heads", qkv_clip=clip)
    )
    return replace(spec, layers=tuple(replace(layer, feed_forward=moe) for layer in spec.layers))


def _flex_olmo(fields: ConfigFields) -> DecoderSpec:
    spec = _olmoe(fields)
    return replace(spec, layers=tuple(replace(layer, wiring="output") for layer in spec.layers))


OLMOE = Family(_olmoe, EXPERT_NAMES, "olmoe", DEFAULTS, ALIASES)
FLEX_OLMO = Family(_flex_olmo, FLEX_NAMES, "flex_olmo", FLEX_DEFAULTS, ALIASES)
