"""Phi-3 and Phi-4: Llama's shape, stored with one matrix for queries, keys and values and one for gate and up."""

from dataclasses import replace

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec

FUSED_GATE_UP = {
    **{module: place for module, place in LLAMA_NAMES.layer_modules.items() if place[0] != "up"},
    "mlp.gate_up_proj": ("up", None),
}
"""Llama's layer modules with gate and up as one matrix."""
NAMES = replace(
    LLAMA_NAMES,
    layer_modules={
        **{module: place for module, place in FUSED_GATE_UP.items() if place[0] != "qkv"},
        "self_attn.qkv_proj": ("qkv", None),
    },
)
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_key_value_heads": None,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "eos_token_id": 32000,
}


def _with_longrope(fields: ConfigFields) -> ConfigFields:
    """The first releases call longrope su or yarn."""
    name = "rope_scaling" if fields.raw("rope_scaling") else "rope_parameters"
    scaling = fields.section(name)
    if scaling.raw("rope_type" if "rope_type" in scaling else "type") in ("su", "yarn"):
        return fields.replaced({name: {"rope_type": "longrope"}})
    return fields


def _phi3(fields: ConfigFields) -> DecoderSpec:
    windows = [read_window(fields)] * fields.integer("num_hidden_layers")
    fields = _with_longrope(fields)
    return llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False, is_partial=True)


PHI3 = Family(_phi3, NAMES, "phi3", DEFAULTS)
