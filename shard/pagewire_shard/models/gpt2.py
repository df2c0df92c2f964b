"""GPT-2: layer norms with bias, learned positions, plain MLP, matrices stored transposed, qkv already merged."""

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.embedding import LearnedPositions
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_activation, refuse, split_heads
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap

GPT2_NAMES = NameMap(
    prefix="transformer.",
    layer="h.",
    modules={"wte": "embed", "wpe": "position_embed", "ln_f": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        "ln_1": ("mixer_norm", None),
        "attn.c_attn": ("qkv", None),
        "attn.c_proj": ("o", None),
        "ln_2": ("feed_forward_norm", None),
        "mlp.c_fc": ("up", None),
        "mlp.c_proj": ("down", None),
    },
    transposed=True,
)
DEFAULTS: dict[str, object] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "eos_token_id": 50256,
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def gpt2_spec(fields: ConfigFields) -> DecoderSpec:
    """The spec of a decoder of GPT-2's shape."""
    # reorder_and_upcast_attn only matters in half-precision training; attention scores are float32 here in any case.
    refuse(fields, "add_cross_attention", accepted=False)
    hidden_size = fields.integer("n_embd")
    num_heads = fields.integer("n_head")
    head_dim = split_heads(fields, "n_embd", num_heads)
    norm = NormSpec("layer", fields.number("layer_norm_epsilon"), bias=True)
    mlp = MlpSpec(
        intermediate_size=fields.integer("n_inner", 4 * hidden_size),
        activation=read_activation(fields, "activation_function", gated=False),
        gated=False,
        bias=True,
    )
    layers = (
        LayerSpec(AttentionSpec(num_heads, num_heads, head_dim, scale, qkv_bias=True, o_bias=True), mlp, norm)
        for scale in _attention_scales(fields, head_dim)
    )
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position=fields.integer("n_positions"),
        layers=tuple(layers),
        final_norm=norm,
        positions=LearnedPositions(),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
    )


def _attention_scales(fields: ConfigFields, head_dim: int) -> list[float]:
    scale = head_dim**-0.5 if fields.flag("scale_attn_weights") else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx")
    return [scale / (index + 1) if by_layer else scale for index in range(fields.integer("n_layer"))]


GPT2 = Family(gpt2_spec, GPT2_NAMES, "gpt2", DEFAULTS, ALIASES)
