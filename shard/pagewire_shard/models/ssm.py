"""Readers of what configurations say of Mamba-2 layers, and the names that their weights have."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from pagewire_shard.layers.mamba2 import Mamba2Spec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.hf_config import ConfigFields

LAYER_TYPES = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"}
"""Spellings of transformers 4 and 5 -> the kind of layer."""

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


def ssm_modules(module: str) -> dict[str, tuple[str, int | None]]:
    """Module within a layer -> parameter, for Mamba-2 layers whose module is `module`."""
    names = {"in_proj": "ssm_in", "conv1d": "conv", "norm": "ssm_norm", "out_proj": "ssm_out"}
    return {f"{module}.{name}": (parameter, None) for name, parameter in names.items()}


def ssm_tensors(module: str) -> dict[str, str]:
    """Tensor within a layer -> parameter, likewise."""
    return {f"{module}.A_log": "log_decay", f"{module}.D": "skip", f"{module}.dt_bias": "dt_bias"}


def read_hybrid_layers(fields: ConfigFields, name: str, kinds: Sequence[str] = ("mamba", "attention")) -> list[str]:
    """The kind of each layer, from a list of layer types; those beyond LAYER_TYPES are spelled as their kind."""
    stated = fields.texts(name) or ()
    layers = [LAYER_TYPES.get(layer_type, layer_type) for layer_type in stated]
    if set(layers) - set(kinds):
        raise fields.unsupported(name, ", ".join([*LAYER_TYPES, *(kind for kind in kinds if kind not in LAYER_TYPES)]))
    return layers


def read_dt_limits(fields: ConfigFields, name: str = "time_step_limit") -> tuple[float, float]:
    """Bounds of a step's length; null: none. JSON has no infinity, and so it is written in several ways."""
    value = fields.raw(name)
    if value is None:
        return 0.0, math.inf
    if not isinstance(value, list) or len(value) != 2:
        raise fields.malformed(name, "must be a list of two numbers")
    low, high = (_number(fields, name, item) for item in value)
    return low, high


def _number(fields: ConfigFields, name: str, item: object) -> float:
    if isinstance(item, dict):
        item = item.get("__float__")
    if item in ("Infinity", "inf"):
        return math.inf
    if isinstance(item, bool) or not isinstance(item, int | float) or not item >= 0:
        raise fields.malformed(name, "must be a list of two numbers that are not negative")
    return float(item)


def check_conv_activation(fields: ConfigFields, name: str) -> None:
    """Raises UnsupportedArchitecture if the convolution's activation is not SiLU."""
    if fields.text(name) not in ("silu", "swish"):
        raise fields.unsupported(name, "silu, swish")


def read_inner_heads(fields: ConfigFields, heads: str, head_dim: str, inner_size: int) -> tuple[int, int]:
    """Number and width of the heads, where the width may be "auto".

    Args:
        heads, head_dim: Names of the fields.
        inner_size: Width of all heads together.
    """
    num_heads = fields.integer(heads)
    if inner_size % num_heads:
        raise fields.malformed(heads, f"must divide the width of all heads, {inner_size}")
    width = inner_size // num_heads
    if fields.raw(head_dim) not in (None, "auto") and fields.integer(head_dim) != width:
        raise fields.malformed(head_dim, f"must be {inner_size} / {num_heads}, the width of all heads by their number")
    return num_heads, width


def check_groups(fields: ConfigFields, name: str, num_heads: int) -> int:
    """The number of groups of heads."""
    num_groups = fields.integer(name)
    if num_heads % num_groups:
        raise fields.malformed(name, f"must divide the number of heads, {num_heads}")
    return num_groups


def read_scales(fields: ConfigFields, name: str, count: int) -> tuple[float, ...]:
    """A list of `count` numbers; absent: ones."""
    scales = fields.numbers(name) or (1.0,) * count
    if len(scales) != count:
        raise fields.malformed(name, f"must have {count} entries")
    return scales


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
        out_bias=fields.flag("mamba_proj_bias"),
        conv_bias=fields.flag("mamba_conv_bias"),
        dt_limits=read_dt_limits(fields),
    )


def with_mamba(spec: DecoderSpec, mamba: Mamba2Spec, is_mamba: Callable[[int], bool]) -> DecoderSpec:
    """The decoder with Mamba-2 in the layers whose index is_mamba takes."""
    layers = (replace(layer, mixer=mamba) if is_mamba(i) else layer for i, layer in enumerate(spec.layers))
    return replace(spec, layers=tuple(layers))
