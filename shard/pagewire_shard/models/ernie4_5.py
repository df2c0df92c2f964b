"""ERNIE 4.5 without experts: Llama's shape, interleaved rotary embedding."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_bias": False,
    "tie_word_embeddings": True,
}


def ernie4_5_spec(fields: ConfigFields) -> DecoderSpec:
    """The decoder, dense in all layers."""
    bias = fields.flag("use_bias")
    windows = [0] * fields.integer("num_hidden_layers")
    return llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, mlp_bias=bias, interleaved=True)


ERNIE4_5 = Family(ernie4_5_spec, LLAMA_NAMES, "ernie4_5", DEFAULTS)
