"""Bamba: Llama's shape with Mamba-2 in place of attention on most layers."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.falcon_h1 import NAMES
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec
from pagewire_shard.models.ssm import MAMBA_DEFAULTS, read_mamba, with_mamba

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    **MAMBA_DEFAULTS,
    "vocab_size": 128000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 262144,
    "partial_rotary_factor": 0.5,
}


def _bamba(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    spec = llama_spec(
        fields,
        windows=[0] * fields.integer("num_hidden_layers"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
        is_partial=True,
    )
    attends = fields.integers("attn_layer_indices")
    mamba = read_mamba(fields, fields.integer("mamba_expand") * spec.hidden_size)
    return with_mamba(spec, mamba, lambda index: index not in attends)


BAMBA = Family(_bamba, NAMES, "bamba", DEFAULTS)
