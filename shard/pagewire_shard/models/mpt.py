"""MPT: ALiBi instead of positions, norms and matrices without biases, perhaps clamped queries, keys and values."""

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.alibi import alibi_slopes
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, refuse, split_heads
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap

NAMES = NameMap(
    prefix="transformer.",
    layer="blocks.",
    modules={"wte": "embed", "norm_f": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        "norm_1": ("mixer_norm", None),
        "attn.Wqkv": ("qkv", None),
        "attn.out_proj": ("o", None),
        "norm_2": ("feed_forward_norm", None),
        "ffn.up_proj": ("up", None),
        "ffn.down_proj": ("down", None),
    },
)
DEFAULTS: dict[str, object] = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50368,
    "layer_norm_epsilon": 1e-05,
    "no_bias": True,
    "logit_scale": None,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
ALIASES = {"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"}
ATTENTION_DEFAULTS: dict[str, object] = {
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "softmax_scale": None,
    "prefix_lm": False,
    "qk_ln": False,
    "alibi": True,
    "alibi_bias_max": 8,
}


def _attention(fields: ConfigFields) -> AttentionSpec:
    stated = fields.section("attn_config").completed(ATTENTION_DEFAULTS, {})
    if stated.text("attn_type") != "multihead_attention":
        raise stated.unsupported("attn_type", "multihead_attention")
    refuse(stated, "prefix_lm", accepted=False)
    refuse(stated, "qk_ln", accepted=False)
    refuse(stated, "alibi", accepted=True)
    num_heads = fields.integer("n_heads")
    head_dim = split_heads(fields, "d_model", num_heads)
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        scale=stated.positive_number("softmax_scale", head_dim**-0.5),
        qkv_clip=stated.positive_number("clip_qkv") if "clip_qkv" in stated else 0.0,
        alibi_slopes=alibi_slopes(num_heads, stated.positive_number("alibi_bias_max")),
    )


def _mpt(fields: ConfigFields) -> DecoderSpec:
    refuse(fields, "no_bias", accepted=True)
    if "logit_scale" in fields:
        raise fields.unsupported("logit_scale", "null")
    hidden_size = fields.integer("d_model")
    norm = NormSpec("layer", fields.number("layer_norm_epsilon"))
    mlp = MlpSpec(fields.integer("expansion_ratio") * hidden_size, "gelu", gated=False, bias=False)
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position=fields.integer("max_seq_len"),
        layers=(LayerSpec(_attention(fields), mlp, norm),) * fields.integer("n_layers"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
    )


MPT = Family(_mpt, NAMES, "mpt", DEFAULTS, ALIASES)
