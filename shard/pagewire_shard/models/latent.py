"""What families with multi-head latent attention share: their fields, and the names of their tensors."""

import math
from dataclasses import replace
from typing import cast

import torch

from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.latent_attention import LatentAttentionSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import read_activation
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.rope import max_position, read_rope, scaling_of

NORM = NormSpec("rms", 1e-6)
"""Of latents; their epsilon is the norm's own, the configuration has no field for it."""
LATENT_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}


def _read_attention(fields: ConfigFields, *, interleaved: bool, is_partial: bool) -> LatentAttentionSpec:
    """The attention that a configuration with DeepSeek's fields asks for; see latent_spec."""
    nope_dim, rope_dim = fields.integer("qk_nope_head_dim"), fields.integer("qk_rope_head_dim")
    query_latent_dim = fields.integer("q_lora_rank") if "q_lora_rank" in fields else 0
    bias = fields.flag("attention_bias")
    rope = _partial_rope(fields, nope_dim, rope_dim) if is_partial else read_rope(fields, rope_dim)
    if bias and not query_latent_dim:
        raise fields.unsupported("attention_bias", "false where q_lora_rank is null")
    return LatentAttentionSpec(
        num_heads=fields.integer("num_attention_heads"),
        latent_dim=fields.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=fields.integer("v_head_dim", fields.integer("hidden_size") // fields.integer("num_attention_heads")),
        scale=(nope_dim + rope_dim) ** -0.5 * _yarn_scale(fields),
        rope=replace(rope, interleaved=interleaved),
        norm=NORM,
        query_latent_dim=query_latent_dim,
        bias=bias,
    )


def _yarn_scale(fields: ConfigFields) -> float:
    """What yarn for all dimensions multiplies the scores with: DeepSeek's mscale_all_dim."""
    scaling = fields.section("rope_scaling" if fields.raw("rope_scaling") else "rope_parameters")
    if scaling.text("rope_type" if "rope_type" in scaling else "type", "default") == "default":
        return 1.0
    mscale_all_dim = scaling.number("mscale_all_dim", 0.0)
    factor = scaling.positive_number("factor") if mscale_all_dim else 1.0
    return (0.1 * mscale_all_dim * math.log(factor) + 1.0) ** 2 if factor > 1.0 else 1.0


def unrotated_first(layer: LayerSpec) -> torch.Tensor:
    """For each row of the queries' matrix the stored one, where a checkpoint has head after head."""
    attention = cast(LatentAttentionSpec, layer.mixer)
    sizes = [attention.nope_dim, attention.rope_dim]
    rows = torch.arange(attention.num_heads * sum(sizes)).view(attention.num_heads, -1)
    return torch.cat([part.flatten() for part in torch.split_with_sizes(rows, sizes, dim=1)])


def _has_query_latent(layer: LayerSpec) -> bool:
    return cast(LatentAttentionSpec, layer.mixer).query_latent_dim > 0


def _partial_rope(fields: ConfigFields, nope_dim: int, rope_dim: int) -> RopeSpec:
    head_dim = nope_dim + rope_dim
    scaling = scaling_of(fields).with_default("partial_rotary_factor", rope_dim / head_dim)
    rope = read_rope(fields, head_dim, is_partial=True, scaling=scaling)
    if rope.rotary_dim != rope_dim:
        raise scaling.unsupported("partial_rotary_factor", f"the share of qk_rope_head_dim, {rope_dim} of {head_dim}")
    return rope


def latent_spec(
    fields: ConfigFields, *, interleaved: bool, mlp_bias: bool = False, is_partial: bool = False
) -> DecoderSpec:
    """The spec of a decoder of Llama's shape with latent attention.

    Args:
        interleaved: See RopeSpec.
        is_partial: partial_rotary_factor is qk_rope_head_dim's share of a head.
    """
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    attention = _read_attention(fields, interleaved=interleaved, is_partial=is_partial)
    mlp = MlpSpec(
        intermediate_size=fields.integer("intermediate_size"),
        activation=read_activation(fields, "hidden_act", gated=True),
        gated=True,
        bias=mlp_bias,
    )
    hidden_size = fields.integer("hidden_size")
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position=max_position(fields, attention.rope),
        layers=(LayerSpec(attention, mlp, norm),) * fields.integer("num_hidden_layers"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range", 2.0 / (5.0 * hidden_size) ** 0.5),
    )


LATENT_MODULES: dict[str, tuple[str, int | None]] = {
    "self_attn.q_a_proj": ("query_and_latent", 0),
    # Without q_lora_rank.
    "self_attn.q_proj": ("query_and_latent", 0),
    "self_attn.kv_a_proj_with_mqa": ("query_and_latent", 1),
    "self_attn.q_a_layernorm": ("query_norm", None),
    "self_attn.q_b_proj": ("query", None),
    "self_attn.kv_a_layernorm": ("latent_norm", None),
    "self_attn.kv_b_proj": ("head_matrices", None),
    "self_attn.o_proj": ("o", None),
}
ROW_ORDERS = {"self_attn.q_proj": unrotated_first, "self_attn.q_b_proj": unrotated_first}


def with_latent_attention(names: NameMap) -> NameMap:
    """The names of a family of Llama's shape with those of latent attention in place of the attention's."""
    others = {module: place for module, place in names.layer_modules.items() if not module.startswith("self_attn.")}
    only_for = {"self_attn.q_a_proj": _has_query_latent}
    return replace(names, layer_modules={**others, **LATENT_MODULES}, row_orders=ROW_ORDERS, only_for=only_for)
