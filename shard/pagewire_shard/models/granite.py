"""Granite 3: Llama's shape with multipliers of embeddings, attention, residual and logits; dense, or with experts and
perhaps a shared one."""

from dataclasses import replace
from typing import Any

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.block import FeedForwardSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec, SharedExpertSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import ATTENTION_NAMES, check_silu, read_top_k
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
MOE_DEFAULTS: dict[str, object] = {**DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}
MOE_NAMES = replace(
    LLAMA_NAMES,
    layer_modules={
        **ATTENTION_NAMES,
        "block_sparse_moe.router.layer": ("router", None),
        "shared_mlp.input_linear": ("shared_up", None),
        "shared_mlp.output_linear": ("shared_down", None),
    },
    layer_tensors={
        "block_sparse_moe.input_linear.weight": "experts_up",
        "block_sparse_moe.output_linear.weight": "experts_down",
    },
)


def granite(fields: ConfigFields, *, has_rope: bool = True, attention_scale: float | None = None) -> DecoderSpec:
    """A dense decoder with Granite's multipliers.

    Args:
        has_rope: Whether heads are rotated.
        attention_scale: Multiplies query-key products; None: attention_multiplier does.
    """
    bias = fields.flag("attention_bias")
    windows = [0] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias", False))
    scale = fields.number("attention_multiplier") if attention_scale is None else attention_scale
    changes: dict[str, Any] = {"scale": scale} | ({} if has_rope else {"rope": None})
    spec = with_mixers(spec, lambda _, attention: replace(attention, **changes))
    residual_scale = fields.number("residual_multiplier")
    return replace(
        spec,
        layers=tuple(replace(layer, residual_scale=residual_scale) for layer in spec.layers),
        embedding_scale=fields.number("embedding_multiplier"),
        logit_scale=1.0 / fields.positive_number("logits_scaling"),
    )


def read_mixture(fields: ConfigFields) -> FeedForwardSpec:
    """A mixture of experts, beside a shared one if shared_intermediate_size is given."""
    check_silu(fields)
    num_experts = fields.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=True),
    )
    if not fields.number("shared_intermediate_size", 0):
        return moe
    shared = MlpSpec(fields.integer("shared_intermediate_size"), "silu", gated=True, bias=False)
    return SharedExpertSpec(moe, shared, is_weighted=False)


def _granite_moe(fields: ConfigFields) -> DecoderSpec:
    feed_forward, spec = read_mixture(fields), granite(fields)
    return replace(spec, layers=tuple(replace(layer, feed_forward=feed_forward) for layer in spec.layers))


GRANITE = Family(granite, LLAMA_NAMES, "granite", DEFAULTS)
GRANITE_MOE = Family(_granite_moe, MOE_NAMES, "granitemoe", MOE_DEFAULTS)
GRANITE_MOE_SHARED = Family(
    _granite_moe, MOE_NAMES, "granitemoeshared", {**MOE_DEFAULTS, "shared_intermediate_size": 0}
)
