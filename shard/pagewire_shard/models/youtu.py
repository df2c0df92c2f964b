"""Youtu-LLM: Llama's shape with multi-head latent attention."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.latent import LATENT_DEFAULTS, latent_spec, with_latent_attention
from pagewire_shard.models.llama import LLAMA_NAMES

DEFAULTS: dict[str, object] = {
    **LATENT_DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "max_position_embeddings": 131072,
    "initializer_range": None,
    "rope_interleave": True,
    "tie_word_embeddings": True,
    "eos_token_id": 128001,
}


def _youtu(fields: ConfigFields) -> DecoderSpec:
    return latent_spec(fields, interleaved=fields.flag("rope_interleave"))


YOUTU = Family(_youtu, with_latent_attention(LLAMA_NAMES), "youtu", DEFAULTS)
