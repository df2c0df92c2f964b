"""Granite 4: Granite 3's multipliers, with Mamba-2 in place of attention on most layers, and mostly no positions."""

from collections.abc import Callable
from dataclasses import replace

from pagewire_shard.layers.block import FeedForwardSpec
from pagewire_shard.layers.mamba2 import Mamba2Spec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import check_silu
from pagewire_shard.models.family import Family
from pagewire_shard.models.granite import MOE_DEFAULTS, MOE_NAMES, granite, read_mixture
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.ssm import (
    check_conv_activation,
    check_groups,
    read_dt_limits,
    read_hybrid_layers,
    read_inner_heads,
    ssm_modules,
    ssm_tensors,
)

MAMBA_DEFAULTS: dict[str, object] = {
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "time_step_limit": None,
}
"""Of Granite, Bamba and Falcon-H1."""
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


def read_mamba(fields: ConfigFields, inner_size: int, activation: str = "hidden_act") -> Mamba2Spec:
    """The Mamba-2 layers of configurations whose fields begin with mamba_.

    Args:
        inner_size: Width of all heads together.
        activation: Field that names the convolution's activation.
    """
    check_conv_activation(fields, activation)
    num_heads, head_dim = read_inner_heads(fields, "mamba_n_heads", "mamba_d_head", inner_size)
    return Mamba2Spec(
        num_heads=num_heads,
        head_dim=head_dim,
        num_groups=check_groups(fields, "mamba_n_groups", num_heads),
        state_size=fields.integer("mamba_d_state"),
        conv_width=fields.integer("mamba_d_conv"),
        norm_eps=fields.number("rms_norm_eps"),
        bias=fields.flag("mamba_proj_bias"),
        conv_bias=fields.flag("mamba_conv_bias"),
        dt_limits=read_dt_limits(fields),
    )


def with_mamba(spec: DecoderSpec, mamba: Mamba2Spec, is_mamba: Callable[[int], bool]) -> DecoderSpec:
    """The decoder with Mamba-2 in the layers whose index is_mamba takes."""
    layers = (replace(layer, mixer=mamba) if is_mamba(i) else layer for i, layer in enumerate(spec.layers))
    return replace(spec, layers=tuple(layers))


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
