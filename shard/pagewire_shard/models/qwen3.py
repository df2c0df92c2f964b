"""Qwen3: Llama's shape with an RMS norm over each head's query and key, and a head size of its own."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, llama_spec
from pagewire_shard.models.qwen2 import QWEN2_DEFAULTS, read_windows

DEFAULTS: dict[str, object] = {**QWEN2_DEFAULTS, "head_dim": 128}


def _qwen3(fields: ConfigFields) -> DecoderSpec:
    attention_bias = fields.flag("attention_bias")
    return llama_spec(
        fields,
        windows=read_windows(fields),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        qk_norm=True,
    )


QWEN3 = Family(_qwen3, LLAMA_NAMES, "qwen3", DEFAULTS)
