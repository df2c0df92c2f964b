"""GPT-NeoX and Pythia: attention and MLP in parallel, each with a layer norm of its own, or one after the other; one
matrix for queries, keys and values, stored head by head. Persimmon: one after the other, and norms of queries and keys.
"""

from dataclasses import replace

from pagewire_shard.layers.block import Wiring
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.fused_qkv import head_by_head
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import with_mixers
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.plain_mlp import Biases, plain_spec

GPT_NEOX_NAMES = NameMap(
    prefix="gpt_neox.",
    layer="layers.",
    modules={
        "embed_in": "embed",
        "final_layer_norm": "final_norm",
        "embed_out": "lm_head",
        # transformers 5's own name.
        "lm_head": "lm_head",
    },
    layer_modules={
        "input_layernorm": ("mixer_norm", None),
        "attention.query_key_value": ("qkv", None),
        "attention.dense": ("o", None),
        "post_attention_layernorm": ("feed_forward_norm", None),
        "mlp.dense_h_to_4h": ("up", None),
        "mlp.dense_4h_to_h": ("down", None),
    },
    row_orders={"attention.query_key_value": head_by_head},
)
GPT_NEOX_DEFAULTS: dict[str, object] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "attention_bias": True,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "eos_token_id": 2,
}
GPT_NEOX_ALIASES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}

PERSIMMON_NAMES = NameMap(
    prefix="model.",
    layer="layers.",
    modules={"embed_tokens": "embed", "final_layernorm": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        "input_layernorm": ("mixer_norm", None),
        "self_attn.query_key_value": ("qkv", None),
        "self_attn.q_layernorm": ("q_norm", None),
        "self_attn.k_layernorm": ("k_norm", None),
        "self_attn.dense": ("o", None),
        "post_attention_layernorm": ("feed_forward_norm", None),
        "mlp.dense_h_to_4h": ("up", None),
        "mlp.dense_4h_to_h": ("down", None),
    },
    row_orders={"self_attn.query_key_value": head_by_head},
)
PERSIMMON_DEFAULTS: dict[str, object] = {
    "vocab_size": 262144,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "hidden_act": "relu2",
    "max_position_embeddings": 16384,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "qk_layernorm": True,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "eos_token_id": 2,
}


def _gpt_neox(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    norm = NormSpec("layer", fields.number("layer_norm_eps"), bias=True)
    windows = [0] * fields.integer("num_hidden_layers")
    spec = plain_spec(fields, norm, Biases(qkv=bias, o=bias, mlp=True), windows, is_partial=True)
    wiring: Wiring = "parallel_norms" if fields.flag("use_parallel_residual") else "pre"
    return replace(spec, layers=tuple(replace(layer, wiring=wiring) for layer in spec.layers))


def _persimmon(fields: ConfigFields) -> DecoderSpec:
    norm = NormSpec("layer", fields.number("layer_norm_eps"), bias=True)
    windows = [0] * fields.integer("num_hidden_layers")
    spec = plain_spec(fields, norm, Biases(qkv=True, o=True, mlp=True), windows, is_partial=True)
    qk_norm = norm if fields.flag("qk_layernorm") else None
    return with_mixers(spec, lambda _, attention: replace(attention, qk_norm=qk_norm))


GPT_NEOX = Family(_gpt_neox, GPT_NEOX_NAMES, "gpt_neox", GPT_NEOX_DEFAULTS, GPT_NEOX_ALIASES)
PERSIMMON = Family(_persimmon, PERSIMMON_NAMES, "persimmon", PERSIMMON_DEFAULTS)
