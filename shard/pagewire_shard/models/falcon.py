"""Falcon: one matrix for queries, keys and values, stored KV head by KV head.

7B: one KV head, attention and MLP in parallel on one norm. 40B and 180B ("new decoder architecture"): several KV heads,
in parallel with a norm each. RW: one after the other, a KV head for each head, and ALiBi in place of rotary positions.
"""

from dataclasses import replace

import torch

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec, Wiring
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.alibi import alibi_slopes
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_activation, split_heads
from pagewire_shard.models.fused_qkv import head_by_head
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.rope import max_position, read_rope

NAMES = NameMap(
    prefix="transformer.",
    layer="h.",
    modules={"word_embeddings": "embed", "ln_f": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        "input_layernorm": ("mixer_norm", None),
        "ln_attn": ("mixer_norm", None),
        "self_attention.query_key_value": ("qkv", None),
        "self_attention.dense": ("o", None),
        "post_attention_layernorm": ("feed_forward_norm", None),
        "ln_mlp": ("feed_forward_norm", None),
        "mlp.dense_h_to_4h": ("up", None),
        "mlp.dense_4h_to_h": ("down", None),
    },
    row_orders={"self_attention.query_key_value": head_by_head},
)
DEFAULTS: dict[str, object] = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None,
    "layer_norm_epsilon": 1e-05,
    "initializer_range": 0.02,
    "num_kv_heads": None,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "tie_word_embeddings": True,
    "eos_token_id": 11,
}
ALIASES = {"n_embed": "hidden_size"}


def _attention(fields: ConfigFields) -> AttentionSpec:
    num_heads = fields.integer("num_attention_heads")
    head_dim = split_heads(fields, "hidden_size", num_heads)
    attention = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=read_rope(fields, head_dim),
        qkv_bias=fields.flag("bias"),
        o_bias=fields.flag("bias"),
    )
    if not fields.flag("alibi"):
        return attention
    # The scale is applied to scores and biases alike, and transformers has the slopes in bfloat16.
    slopes = torch.tensor(alibi_slopes(num_heads)).bfloat16().float() * attention.scale
    return replace(attention, rope=None, alibi_slopes=tuple(slopes.tolist()))


def _num_kv_heads(fields: ConfigFields, num_heads: int) -> int:
    if not fields.flag("new_decoder_architecture"):
        return 1 if fields.flag("multi_query") else num_heads
    num_kv_heads = fields.integer("num_kv_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.malformed("num_kv_heads", f"must divide num_attention_heads, {num_heads}")
    return num_kv_heads


def _wiring(fields: ConfigFields) -> Wiring:
    if fields.flag("new_decoder_architecture"):
        return "parallel_norms" if fields.integer("num_ln_in_parallel_attn", 2) == 2 else "parallel"
    return "parallel" if fields.flag("parallel_attn") else "pre"


def _falcon(fields: ConfigFields) -> DecoderSpec:
    hidden_size = fields.integer("hidden_size")
    norm = NormSpec("layer", fields.number("layer_norm_epsilon"), bias=True)
    attention = _attention(fields)
    mlp = MlpSpec(
        intermediate_size=fields.integer("ffn_hidden_size", 4 * hidden_size),
        activation=read_activation(fields, "activation", gated=False),
        gated=False,
        bias=fields.flag("bias"),
    )
    stated = fields.integer("max_position_embeddings")
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position=max_position(fields, attention.rope) if attention.rope else stated,
        layers=(LayerSpec(attention, mlp, norm, _wiring(fields)),) * fields.integer("num_hidden_layers"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
    )


FALCON = Family(_falcon, NAMES, "falcon", DEFAULTS, ALIASES)
