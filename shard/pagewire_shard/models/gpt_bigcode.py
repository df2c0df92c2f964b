"""GPT-BigCode (StarCoder, SantaCoder): GPT-2's shape; all query heads share one key-value head."""

from dataclasses import replace

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.fused_qkv import head_by_head
from pagewire_shard.models.gpt2 import ALIASES, DEFAULTS, GPT2_NAMES, gpt2_spec
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import with_mixers

NAMES = replace(GPT2_NAMES, transposed=False, row_orders={"attn.c_attn": head_by_head})
BIGCODE_DEFAULTS: dict[str, object] = {**DEFAULTS, "activation_function": "gelu_pytorch_tanh", "multi_query": True}


def _gpt_bigcode(fields: ConfigFields) -> DecoderSpec:
    num_kv_heads = 1 if fields.flag("multi_query") else fields.integer("n_head")
    return with_mixers(gpt2_spec(fields), lambda _, attention: replace(attention, num_kv_heads=num_kv_heads))


GPT_BIGCODE = Family(_gpt_bigcode, NAMES, "gpt_bigcode", BIGCODE_DEFAULTS, ALIASES)
