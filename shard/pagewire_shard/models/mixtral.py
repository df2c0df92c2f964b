"""Mixtral: Llama's shape with a mixture of experts in place of every MLP."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import MIXTRAL_NAMES, check_silu, read_top_k
from pagewire_shard.models.family import Family, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import MISTRAL_DEFAULTS, llama_spec

DEFAULTS: dict[str, object] = {
    **MISTRAL_DEFAULTS,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
ALIASES = {"num_experts": "num_local_experts"}


def _mixtral(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=True),
    )
    windows = [read_window(fields)] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False)
    return replace(spec, layers=tuple(replace(layer, feed_forward=moe) for layer in spec.layers))


MIXTRAL = Family(_mixtral, MIXTRAL_NAMES, "mixtral", DEFAULTS, ALIASES)
