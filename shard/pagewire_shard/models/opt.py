"""OPT: layer norms with bias, learned positions that start at row 2, plain MLP, tied embeddings.

The 350m model applies norms after each block instead of before, has no final norm, and has narrower token embeddings.
"""

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.embedding import LearnedPositions
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_activation, split_heads
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap

POSITION_OFFSET = 2
EPSILON = 1e-5
"""Of nn.LayerNorm itself; the configuration has no field for it."""

OPT_NAMES = NameMap(
    prefix="model.",
    layer="decoder.layers.",
    modules={
        "decoder.embed_tokens": "embed",
        "decoder.embed_positions": "position_embed",
        "decoder.project_in": "project_in",
        "decoder.project_out": "project_out",
        "decoder.final_layer_norm": "final_norm",
        "lm_head": "lm_head",
    },
    layer_modules={
        "self_attn_layer_norm": ("mixer_norm", None),
        "self_attn.q_proj": ("qkv", 0),
        "self_attn.k_proj": ("qkv", 1),
        "self_attn.v_proj": ("qkv", 2),
        "self_attn.out_proj": ("o", None),
        "final_layer_norm": ("feed_forward_norm", None),
        "fc1": ("up", None),
        "fc2": ("down", None),
    },
)
DEFAULTS: dict[str, object] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "init_std": 0.02,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


def _opt(fields: ConfigFields) -> DecoderSpec:
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    head_dim = split_heads(fields, "hidden_size", num_heads)
    bias = fields.flag("enable_bias")
    affine = fields.flag("layer_norm_elementwise_affine")
    norm = NormSpec("layer", EPSILON, bias=affine, is_learned=affine)
    norm_before = fields.flag("do_layer_norm_before")
    mlp = MlpSpec(
        intermediate_size=fields.integer("ffn_dim"),
        activation=read_activation(fields, "activation_function", gated=False),
        gated=False,
        bias=bias,
    )
    attention = AttentionSpec(num_heads, num_heads, head_dim, head_dim**-0.5, qkv_bias=bias, o_bias=bias)
    layer = LayerSpec(attention, mlp, norm, wiring="pre" if norm_before else "post")
    embedding_size = fields.integer("word_embed_proj_dim", hidden_size)
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        embedding_size=embedding_size if embedding_size != hidden_size else None,
        max_position=fields.integer("max_position_embeddings"),
        layers=(layer,) * fields.integer("num_hidden_layers"),
        final_norm=norm if norm_before and not fields.flag("_remove_final_layer_norm") else None,
        positions=LearnedPositions(POSITION_OFFSET),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("init_std"),
    )


OPT = Family(_opt, OPT_NAMES, "opt", DEFAULTS)
