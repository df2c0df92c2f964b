"""Helium: Llama's shape, interleaved rotary embedding."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-08,
    "rope_theta": 100000.0,
}


def _helium(fields: ConfigFields) -> DecoderSpec:
    return llama_spec(
        fields,
        windows=[0] * fields.integer("num_hidden_layers"),
        qkv_bias=fields.flag("attention_bias"),
        o_bias=False,
        mlp_bias=fields.flag("mlp_bias"),
        interleaved=True,
    )


HELIUM = Family(_helium, LLAMA_NAMES, "helium", DEFAULTS)
