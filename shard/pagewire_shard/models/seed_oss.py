"""Seed-OSS: Llama's shape with a head size of its own, and biases on query, key and value."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 155136,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "attention_bias": True,
    "attention_out_bias": False,
}


def _seed_oss(fields: ConfigFields) -> DecoderSpec:
    return llama_spec(
        fields,
        windows=[0] * fields.integer("num_hidden_layers"),
        qkv_bias=fields.flag("attention_bias"),
        o_bias=fields.flag("attention_out_bias"),
        mlp_bias=fields.flag("mlp_bias"),
    )


SEED_OSS = Family(_seed_oss, LLAMA_NAMES, "seed_oss", DEFAULTS)
