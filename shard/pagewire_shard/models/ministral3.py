"""Ministral 3: Mistral with queries that are scaled by their positions."""

from dataclasses import replace

from pagewire_shard.layers.position_scale import PositionScaleSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, MISTRAL_DEFAULTS, llama_spec, with_mixers
from pagewire_shard.models.rope import original_max_position, scaling_of

DEFAULTS: dict[str, object] = {
    **MISTRAL_DEFAULTS,
    "vocab_size": 131072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_parameters": {
        "type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "sliding_window": None,
}


def read_position_scale(fields: ConfigFields) -> PositionScaleSpec | None:
    """What the object of the rotary embedding says of the queries' scale; None: nothing."""
    scaling = scaling_of(fields)
    if "llama_4_scaling_beta" not in scaling:
        return None
    return PositionScaleSpec(scaling.number("llama_4_scaling_beta"), original_max_position(fields, scaling))


def _ministral3(fields: ConfigFields) -> DecoderSpec:
    windows = [read_window(fields)] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False)
    scale = read_position_scale(fields)
    spec = with_mixers(spec, lambda _, attention: replace(attention, scaled_by_position=scale is not None))
    return replace(spec, position_scale=scale)


MINISTRAL3 = Family(_ministral3, LLAMA_NAMES, "ministral3", DEFAULTS)
