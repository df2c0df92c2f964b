"""OLMo, the first one: Llama's shape with layer norms that have no weights."""

from dataclasses import replace

from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers

DEFAULTS: dict[str, object] = {**LLAMA_DEFAULTS, "vocab_size": 50304, "clip_qkv": None, "eos_token_id": 50279}
NORM = NormSpec("layer", 1e-5, is_learned=False)


def _olmo(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    spec = llama_spec(fields, windows=[0] * fields.integer("num_hidden_layers"), qkv_bias=bias, o_bias=bias)
    clip = fields.positive_number("clip_qkv") if "clip_qkv" in fields else 0.0
    spec = with_mixers(spec, lambda _, attention: replace(attention, qkv_clip=clip))
    return replace(spec, layers=tuple(replace(layer, norm=NORM) for layer in spec.layers), final_norm=NORM)


OLMO = Family(_olmo, LLAMA_NAMES, "olmo", DEFAULTS)
