"""GPT-J: attention and MLP in parallel on one layer norm, the leading dimensions of each head rotated in pairs of
neighbours, biases in the MLP and the output projection alone. CodeGen: the same, stored with one matrix for queries,
keys and values."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_activation, split_heads
from pagewire_shard.models.fused_qkv import in_four_slices
from pagewire_shard.models.gpt2 import ALIASES
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.rope import DEFAULT_THETA

_SEPARATE: dict[str, tuple[str, int | None]] = {
    "attn.q_proj": ("qkv", 0),
    "attn.k_proj": ("qkv", 1),
    "attn.v_proj": ("qkv", 2),
}
_OTHERS: dict[str, tuple[str, int | None]] = {
    "ln_1": ("mixer_norm", None),
    "attn.out_proj": ("o", None),
    "mlp.fc_in": ("up", None),
    "mlp.fc_out": ("down", None),
}
GPTJ_NAMES = NameMap(
    prefix="transformer.",
    layer="h.",
    modules={"wte": "embed", "ln_f": "final_norm", "lm_head": "lm_head"},
    layer_modules={**_SEPARATE, **_OTHERS},
)
CODEGEN_NAMES = replace(
    GPTJ_NAMES, layer_modules={"attn.qkv_proj": ("qkv", None), **_OTHERS}, row_orders={"attn.qkv_proj": in_four_slices}
)
DEFAULTS: dict[str, object] = {
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "eos_token_id": 50256,
}


def _gptj(fields: ConfigFields) -> DecoderSpec:
    hidden_size = fields.integer("n_embd")
    num_heads = fields.integer("n_head")
    head_dim = split_heads(fields, "n_embd", num_heads)
    rotary_dim = fields.integer("rotary_dim")
    if rotary_dim > head_dim:
        raise fields.malformed("rotary_dim", f"must be at most the size of a head, {head_dim}")
    norm = NormSpec("layer", fields.number("layer_norm_epsilon"), bias=True)
    rope = RopeSpec(DEFAULT_THETA, rotary_dim, interleaved=True)
    attention = AttentionSpec(num_heads, num_heads, head_dim, head_dim**-0.5, rope)
    mlp = MlpSpec(
        intermediate_size=fields.integer("n_inner", 4 * hidden_size),
        activation=read_activation(fields, "activation_function", gated=False),
        gated=False,
        bias=True,
    )
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position=fields.integer("n_positions"),
        layers=(LayerSpec(attention, mlp, norm, wiring="parallel"),) * fields.integer("n_layer"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
        lm_head_bias=True,
    )


def _codegen(fields: ConfigFields) -> DecoderSpec:
    if fields.integer("n_head") % 4:
        raise fields.malformed("n_head", "must be a multiple of 4")
    return _gptj(fields)


GPTJ = Family(_gptj, GPTJ_NAMES, "gptj", DEFAULTS, ALIASES)
CODEGEN = Family(_codegen, CODEGEN_NAMES, "codegen", DEFAULTS, ALIASES)
