"""Phi-1 to Phi-2: attention and MLP in parallel on one layer norm, partial rotary embedding, biases everywhere."""

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_activation, read_head_dim, read_num_kv_heads
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.rope import max_position, read_rope

PHI_NAMES = NameMap(
    prefix="model.",
    layer="layers.",
    modules={"embed_tokens": "embed", "final_layernorm": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        "input_layernorm": ("mixer_norm", None),
        "self_attn.q_proj": ("qkv", 0),
        "self_attn.k_proj": ("qkv", 1),
        "self_attn.v_proj": ("qkv", 2),
        "self_attn.q_layernorm": ("q_norm", None),
        "self_attn.k_layernorm": ("k_norm", None),
        "self_attn.dense": ("o", None),
        "mlp.fc1": ("up", None),
        "mlp.fc2": ("down", None),
    },
)
DEFAULTS: dict[str, object] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
    "eos_token_id": 2,
}


def _phi(fields: ConfigFields) -> DecoderSpec:
    num_heads = fields.integer("num_attention_heads")
    head_dim = read_head_dim(fields, num_heads)
    rope = read_rope(fields, head_dim, is_partial=True)
    norm = NormSpec("layer", fields.number("layer_norm_eps"), bias=True)
    attention = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=read_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qk_norm=norm if fields.flag("qk_layernorm") else None,
        qkv_bias=True,
        o_bias=True,
    )
    mlp = MlpSpec(
        intermediate_size=fields.integer("intermediate_size"),
        activation=read_activation(fields, "hidden_act", gated=False),
        gated=False,
        bias=True,
    )
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        max_position=max_position(fields, rope),
        layers=(LayerSpec(attention, mlp, norm, wiring="parallel"),) * fields.integer("num_hidden_layers"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
        lm_head_bias=True,
    )


PHI = Family(_phi, PHI_NAMES, "phi", DEFAULTS)
