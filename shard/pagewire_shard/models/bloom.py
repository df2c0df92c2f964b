"""BLOOM: ALiBi instead of positions, a norm of the embeddings, biases everywhere, and one matrix for queries, keys and
values, stored head by head."""

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.alibi import alibi_slopes
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, refuse, split_heads
from pagewire_shard.models.fused_qkv import head_by_head
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap

TRAINED_LENGTH = 2048
"""Context that BLOOM was trained with; most configurations state it as seq_length."""
NAMES = NameMap(
    prefix="transformer.",
    layer="h.",
    modules={
        "word_embeddings": "embed",
        "word_embeddings_layernorm": "embedding_norm",
        "ln_f": "final_norm",
        "lm_head": "lm_head",
    },
    layer_modules={
        "input_layernorm": ("mixer_norm", None),
        "self_attention.query_key_value": ("qkv", None),
        "self_attention.dense": ("o", None),
        "post_attention_layernorm": ("feed_forward_norm", None),
        "mlp.dense_h_to_4h": ("up", None),
        "mlp.dense_4h_to_h": ("down", None),
    },
    row_orders={"self_attention.query_key_value": head_by_head},
)
DEFAULTS: dict[str, object] = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-05,
    "initializer_range": 0.02,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
ALIASES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"}


def _bloom(fields: ConfigFields) -> DecoderSpec:
    refuse(fields, "apply_residual_connection_post_layernorm", accepted=False)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("n_head")
    head_dim = split_heads(fields, "hidden_size", num_heads)
    norm = NormSpec("layer", fields.number("layer_norm_epsilon"), bias=True)
    attention = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=True,
        o_bias=True,
        alibi_slopes=alibi_slopes(num_heads),
    )
    mlp = MlpSpec(4 * hidden_size, "gelu_tanh", gated=False, bias=True)
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position=fields.integer("seq_length", TRAINED_LENGTH),
        layers=(LayerSpec(attention, mlp, norm),) * fields.integer("n_layer"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
        embedding_norm=norm,
    )


BLOOM = Family(_bloom, NAMES, "bloom", DEFAULTS, ALIASES)
