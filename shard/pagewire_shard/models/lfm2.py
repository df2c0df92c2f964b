"""LFM2: gated short convolutions, and attention with norms of queries and keys on some layers. The MoE models have a
mixture of experts on all layers but the first few."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.block import FeedForwardSpec, LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.layers.short_conv import ShortConvSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import read_top_k, with_feed_forward
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec
from pagewire_shard.models.names import NameMap

NAMES = NameMap(
    prefix="model.",
    layer="layers.",
    modules={"embed_tokens": "embed", "embedding_norm": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        "operator_norm": ("mixer_norm", None),
        "self_attn.q_proj": ("qkv", 0),
        "self_attn.k_proj": ("qkv", 1),
        "self_attn.v_proj": ("qkv", 2),
        "self_attn.q_layernorm": ("q_norm", None),
        "self_attn.k_layernorm": ("k_norm", None),
        "self_attn.out_proj": ("o", None),
        "conv.in_proj": ("conv_in", None),
        "conv.conv": ("conv", None),
        "conv.out_proj": ("conv_out", None),
        "ffn_norm": ("feed_forward_norm", None),
        "feed_forward.w1": ("up", 0),
        "feed_forward.w3": ("up", 1),
        "feed_forward.w2": ("down", None),
    },
)
MOE_NAMES = replace(
    NAMES,
    layer_modules={**NAMES.layer_modules, "feed_forward.gate": ("router", None)},
    experts={
        "feed_forward.experts.{}.w1": ("experts_up", 2, 0),
        "feed_forward.experts.{}.w3": ("experts_up", 2, 1),
        "feed_forward.experts.{}.w2": ("experts_down", 1, 0),
    },
    layer_tensors={
        "feed_forward.experts.gate_up_proj": "experts_up",
        "feed_forward.experts.down_proj": "experts_down",
        "feed_forward.expert_bias": "correction",
    },
)
DEFAULTS: dict[str, object] = {
    **{name: value for name, value in LLAMA_DEFAULTS.items() if name != "rms_norm_eps"},
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "full_attn_idxs": None,
    "layer_types": None,
}
MOE_DEFAULTS: dict[str, object] = {
    **DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts_per_tok": 4,
    "num_experts": 32,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}
ALIASES = {"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"}


def _spec(fields: ConfigFields, attends: list[bool], mlp: FeedForwardSpec | None = None) -> DecoderSpec:
    """attends: for each layer, whether it has attention, not a convolution. mlp: None: Llama's."""
    fields = fields.with_default("rms_norm_eps", fields.number("norm_eps"))
    spec = llama_spec(fields, windows=[0] * len(attends), qkv_bias=False, o_bias=False, qk_norm=True)
    conv = ShortConvSpec(spec.hidden_size, fields.integer("conv_L_cache"), bias=fields.flag("conv_bias"))
    layers = (
        LayerSpec(layer.mixer if is_attention else conv, mlp or layer.feed_forward, layer.norm)
        for layer, is_attention in zip(spec.layers, attends, strict=True)
    )
    return replace(spec, layers=tuple(layers))


def _read_attends(fields: ConfigFields) -> list[bool] | None:
    """What layer_types says; None: nothing."""
    layer_types = fields.texts("layer_types")
    if layer_types is None:
        return None
    if len(layer_types) != (num_layers := fields.integer("num_hidden_layers")):
        raise fields.malformed("layer_types", f"must have num_hidden_layers entries, {num_layers}")
    if set(layer_types) - {"full_attention", "conv"}:
        raise fields.unsupported("layer_types", "full_attention, conv")
    return [layer_type == "full_attention" for layer_type in layer_types]


def _intermediate_size(fields: ConfigFields) -> int:
    size = fields.integer("intermediate_size")
    if not fields.flag("block_auto_adjust_ff_dim"):
        return size
    size = int(2 * size / 3)
    if "block_ffn_dim_multiplier" not in fields:
        return size
    multiple = fields.integer("block_multiple_of")
    return multiple * -(-int(fields.positive_number("block_ffn_dim_multiplier") * size) // multiple)


def _lfm2(fields: ConfigFields) -> DecoderSpec:
    attends = _read_attends(fields)
    if attends is None:
        num_layers = fields.integer("num_hidden_layers")
        attention = fields.integers("full_attn_idxs") if "full_attn_idxs" in fields else range(num_layers)
        attends = [index in attention for index in range(num_layers)]
    return _spec(fields, attends, MlpSpec(_intermediate_size(fields), "silu", gated=True, bias=False))


def _lfm2_moe(fields: ConfigFields) -> DecoderSpec:
    attends = _read_attends(fields)
    if attends is None:
        raise fields.malformed("layer_types", "must say which layers have attention")
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("moe_intermediate_size"),
        router=RouterSpec(
            read_top_k(fields, num_experts),
            "sigmoid",
            renormalise=fields.flag("norm_topk_prob"),
            scale=fields.number("routed_scaling_factor"),
        ),
        has_correction=fields.flag("use_expert_bias"),
    )
    num_dense = fields.count("num_dense_layers")
    return with_feed_forward(_spec(fields, attends), moe, lambda index: index >= num_dense)


LFM2 = Family(_lfm2, NAMES, "lfm2", DEFAULTS, ALIASES)
LFM2_MOE = Family(_lfm2_moe, MOE_NAMES, "lfm2_moe", MOE_DEFAULTS, {"tie_embedding": "tie_word_embeddings"})
