"""Qwen3-Next: three layers of gated delta nets for each layer of attention, which is gated, and on most layers a
mixture of experts beside a weighted shared one. Qwen3.5: the same with experts on all layers or none, and the products
of a delta net stored as matrices of their own."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import FeedForwardSpec, LayerSpec
from pagewire_shard.layers.gated_delta_net import GatedDeltaNetSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec, SharedExpertSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import check_silu, expert_names, read_top_k, with_feed_forward
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.qwen2_moe import with_experts

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.25,
    "layer_types": None,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "norm_topk_prob": True,
    "eos_token_id": None,
}
QWEN3_5_DEFAULTS: dict[str, object] = {
    **DEFAULTS,
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}
QWEN3_5_MOE_DEFAULTS: dict[str, object] = {
    **DEFAULTS,
    "vocab_size": 248320,
    "num_hidden_layers": 40,
    "num_experts": 256,
    "num_experts_per_tok": 8,
}
FUSED = (4, 2)
"""GatedDeltaNetSpec.stored_as: all for a key head and its heads, then all for the next key head."""
SEPARATE = (3, 1, 1, 1)


def _by_key_head(first: int, last: int) -> Callable[[LayerSpec], torch.Tensor]:
    """For each row of the products `first` to `last - 1`, kind after kind, the stored one, key head after key head."""

    def order(layer: LayerSpec) -> torch.Tensor:
        spec = cast(GatedDeltaNetSpec, layer.mixer)
        sizes = [size // spec.num_key_heads for size in spec.sizes[first:last]]
        rows = torch.arange(sum(sizes) * spec.num_key_heads).view(spec.num_key_heads, -1)
        return torch.cat([part.flatten() for part in rows.split_with_sizes(sizes, dim=1)])

    return order


def _queries_first(layer: LayerSpec) -> torch.Tensor:
    """For each row of all queries and then all gates the stored one, head after head."""
    attention = cast(AttentionSpec, layer.mixer)
    rows = torch.arange(2 * attention.num_heads * attention.head_dim).view(attention.num_heads, 2, attention.head_dim)
    return rows.transpose(0, 1).flatten()


def _names(delta_in: dict[str, tuple[str, int | None]]) -> NameMap:
    """delta_in: the stored matrices of a delta net's products."""
    names = expert_names("mlp.shared_expert", modules={"mlp.shared_expert_gate": "shared_weight"})
    return replace(
        names,
        layer_modules={
            **names.layer_modules,
            **delta_in,
            "linear_attn.conv1d": ("conv", None),
            "linear_attn.norm": ("delta_norm", None),
            "linear_attn.out_proj": ("delta_out", None),
        },
        layer_tensors={
            **names.layer_tensors,
            "linear_attn.A_log": "log_decay",
            "linear_attn.dt_bias": "dt_bias",
        },
        row_orders={
            "self_attn.q_proj": _queries_first,
            "linear_attn.in_proj_qkvz": _by_key_head(0, 4),
            "linear_attn.in_proj_ba": _by_key_head(4, 6),
        },
        skipped=("mtp.",),
    )


NAMES = _names({"linear_attn.in_proj_qkvz": ("delta_in", 0), "linear_attn.in_proj_ba": ("delta_in", 1)})
QWEN3_5_NAMES = _names(
    {f"linear_attn.in_proj_{name}": ("delta_in", i) for i, name in enumerate(("qkv", "z", "b", "a"))}
)


def _attends(fields: ConfigFields) -> tuple[bool, ...]:
    """For each layer, whether it has attention, not a delta net."""
    num_layers = fields.integer("num_hidden_layers")
    layer_types = fields.texts("layer_types")
    if layer_types is None:
        interval = fields.integer("full_attention_interval")
        return tuple((index + 1) % interval == 0 for index in range(num_layers))
    if len(layer_types) != num_layers:
        raise fields.malformed("layer_types", f"must have num_hidden_layers entries, {num_layers}")
    if set(layer_types) - {"full_attention", "linear_attention"}:
        raise fields.unsupported("layer_types", "full_attention, linear_attention")
    return tuple(layer_type == "full_attention" for layer_type in layer_types)


def _delta_net(fields: ConfigFields, stored_as: tuple[int, ...]) -> GatedDeltaNetSpec:
    num_key_heads, num_heads = fields.integer("linear_num_key_heads"), fields.integer("linear_num_value_heads")
    if num_heads % num_key_heads:
        raise fields.malformed("linear_num_value_heads", f"must be a multiple of linear_num_key_heads, {num_key_heads}")
    return GatedDeltaNetSpec(
        num_key_heads=num_key_heads,
        num_heads=num_heads,
        key_dim=fields.integer("linear_key_head_dim"),
        value_dim=fields.integer("linear_value_head_dim"),
        conv_width=fields.integer("linear_conv_kernel_dim"),
        norm_eps=fields.number("rms_norm_eps"),
        stored_as=stored_as,
    )


def _hybrid(fields: ConfigFields, stored_as: tuple[int, ...]) -> DecoderSpec:
    """The decoder with MLPs on all layers."""
    check_silu(fields)
    bias = fields.flag("attention_bias")
    attends = _attends(fields)
    spec = llama_spec(fields, windows=[0] * len(attends), qkv_bias=bias, o_bias=bias, is_partial=True)
    norm = NormSpec("rms", fields.number("rms_norm_eps"), weight_offset=1.0, float32_weight=True)
    delta_net = _delta_net(fields, stored_as)

    def change(layer: LayerSpec, is_attention: bool) -> LayerSpec:
        attention = replace(cast(AttentionSpec, layer.mixer), qk_norm=norm, output_gate=True)
        return replace(layer, mixer=attention if is_attention else delta_net, norm=norm)

    layers = tuple(change(layer, is_attention) for layer, is_attention in zip(spec.layers, attends, strict=True))
    return replace(spec, layers=layers, final_norm=norm)


def _experts(fields: ConfigFields, *, renormalise: bool) -> FeedForwardSpec:
    num_experts = fields.integer("num_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("moe_intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=renormalise),
    )
    shared = MlpSpec(fields.integer("shared_expert_intermediate_size"), "silu", gated=True, bias=False)
    return SharedExpertSpec(moe, shared, is_weighted=True)


def _qwen3_next(fields: ConfigFields) -> DecoderSpec:
    experts = _experts(fields, renormalise=fields.flag("norm_topk_prob"))
    return with_experts(fields, _hybrid(fields, FUSED), experts)


def _qwen3_5(fields: ConfigFields) -> DecoderSpec:
    return _hybrid(fields, SEPARATE)


def _qwen3_5_moe(fields: ConfigFields) -> DecoderSpec:
    return with_feed_forward(_hybrid(fields, SEPARATE), _experts(fields, renormalise=True), lambda _: True)


QWEN3_NEXT = Family(_qwen3_next, NAMES, "qwen3_next", DEFAULTS)
QWEN3_5 = Family(_qwen3_5, QWEN3_5_NAMES, "qwen3_5_text", QWEN3_5_DEFAULTS)
QWEN3_5_MOE = Family(_qwen3_5_moe, QWEN3_5_NAMES, "qwen3_5_moe_text", QWEN3_5_MOE_DEFAULTS)
