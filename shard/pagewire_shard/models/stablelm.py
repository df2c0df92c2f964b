"""StableLM: Llama's shape with layer norms, a part of each head rotated, and perhaps attention and MLP in parallel."""

from dataclasses import replace

from pagewire_shard.layers.block import Wiring
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, refuse
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 50304,
    "intermediate_size": 6912,
    "hidden_size": 2560,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-05,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "eos_token_id": 0,
}


def _stablelm(fields: ConfigFields) -> DecoderSpec:
    refuse(fields, "qk_layernorm", accepted=False)
    windows = [0] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=fields.flag("use_qkv_bias"), o_bias=False, is_partial=True)
    norm = NormSpec("layer", fields.number("layer_norm_eps"), bias=True)
    wiring: Wiring = "parallel" if fields.flag("use_parallel_residual") else "pre"
    return replace(
        spec, layers=tuple(replace(layer, norm=norm, wiring=wiring) for layer in spec.layers), final_norm=norm
    )


STABLELM = Family(_stablelm, LLAMA_NAMES, "stablelm", DEFAULTS)
