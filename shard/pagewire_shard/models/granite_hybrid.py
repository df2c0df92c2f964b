"""Granite 4: Granite 3's multipliers, with Mamba-2 in place of attention on most layers, and mostly no positions."""

from dataclasses import replace

from pagewire_shard.layers.block import FeedForwardSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import check_silu
from pagewire_shard.models.family import Family
from pagewire_shard.models.granite import MOE_DEFAULTS, MOE_NAMES, granite, read_mixture
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.ssm import (
    MAMBA_DEFAULTS,
    read_hybrid_layers,
    read_mamba,
    ssm_modules,
    ssm_tensors,
    with_mamba,
)

DEFAULTS: dict[str, object] = {
    **MOE_DEFAULTS,
    **MAMBA_DEFAULTS,
    "shared_intermediate_size": 1024,
    "position_embedding_type": None,
}
NAMES = replace(
    MOE_NAMES,
    layer_modules={**MOE_NAMES.layer_modules, **ssm_modules("mamba")},
    layer_tensors={**MOE_NAMES.layer_tensors, **ssm_tensors("mamba")},
)
DENSE_NAMES = replace(
    NAMES,
    layer_modules={
        **NAMES.layer_modules,
        "shared_mlp.input_linear": ("up", None),
        "shared_mlp.output_linear": ("down", None),
    },
)


def _granite_hybrid(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_layers = fields.integer("num_hidden_layers")
    name = "layer_types" if "layer_types" in fields else "layers_block_type"
    kinds = read_hybrid_layers(fields, name) if name in fields else ["mamba"] * num_layers
    if len(kinds) != num_layers:
        raise fields.malformed(name, f"must have num_hidden_layers entries, {num_layers}")
    positions = fields.raw("position_embedding_type")
    if positions not in (None, "nope", "rope"):
        raise fields.unsupported("position_embedding_type", "null, nope, rope")
    feed_forward: FeedForwardSpec = MlpSpec(fields.integer("shared_intermediate_size"), "silu", gated=True, bias=False)
    if fields.count("num_local_experts", 0):
        feed_forward = read_mixture(fields)
    spec = granite(fields, has_rope=positions == "rope")
    spec = replace(spec, layers=tuple(replace(layer, feed_forward=feed_forward) for layer in spec.layers))
    inner_size = fields.integer("mamba_expand") * spec.hidden_size
    return with_mamba(spec, read_mamba(fields, inner_size), lambda index: kinds[index] == "mamba")


def _names(spec: DecoderSpec) -> NameMap:
    return DENSE_NAMES if isinstance(spec.layers[0].feed_forward, MlpSpec) else NAMES


GRANITE_MOE_HYBRID = Family(_granite_hybrid, NAMES, "granitemoehybrid", DEFAULTS, names_by_spec=_names)
