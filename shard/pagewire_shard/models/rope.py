"""Reads rotary embedding parameters from a configuration, in the form of transformers 4 or 5."""

import math

from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.models.hf_config import ConfigFields

DEFAULT_THETA = 10000.0
"""rope_theta if it is null. If it is absent, the family's default is used."""


def read_rope(
    fields: ConfigFields,
    head_dim: int,
    *,
    is_partial: bool = False,
    scaling: ConfigFields | None = None,
    theta_field: str = "rope_theta",
) -> RopeSpec:
    """The configuration's rotary embedding.

    transformers 5 writes one object rope_parameters; transformers 4 wrote rope_theta beside an optional object
    rope_scaling, in which the variant was first called type. If both objects are present, the older one is used.

    Args:
        is_partial: partial_rotary_factor may ask for rotating only a part of each head; otherwise it is refused.
        scaling: The object to read, where a configuration has several; None: the one that both forms have.
        theta_field: Field of the configuration that holds the base if the object does not.

    Raises:
        UnsupportedArchitecture: the variant is none of default, dynamic, linear, llama3, longrope, proportional, yarn.
    """
    if scaling is None:
        scaling = scaling_of(fields)
    rotary_dim = _rotary_dim(fields, scaling, head_dim, is_partial)
    theta = scaling.positive_number("rope_theta", fields.positive_number(theta_field, DEFAULT_THETA))
    type_field = "rope_type" if "rope_type" in scaling else "type"
    variant = scaling.text(type_field, "default")
    match variant:
        case "default" | "dynamic" | "mrope":
            # mrope rotates a text's tokens as default does.
            # dynamic changes the frequencies of sequences beyond max_position_embeddings, which are not served.
            return RopeSpec(theta, rotary_dim)
        case "linear":
            return RopeSpec(theta, rotary_dim, "linear", scaling.positive_number("factor"))
        case "llama3":
            return RopeSpec(
                theta,
                rotary_dim,
                "llama3",
                scaling.positive_number("factor"),
                original_max_position(fields, scaling),
                low_freq_factor=scaling.positive_number("low_freq_factor"),
                high_freq_factor=scaling.positive_number("high_freq_factor"),
            )
        case "yarn":
            return _read_yarn(fields, scaling, theta, rotary_dim)
        case "longrope":
            return _read_longrope(fields, scaling, theta, rotary_dim)
        case "proportional":
            return RopeSpec(
                theta,
                head_dim,
                "proportional",
                scaling.positive_number("factor", 1.0),
                num_turning=int(scaling.positive_number("partial_rotary_factor", 1.0) * head_dim // 2),
            )
        case _:
            raise scaling.unsupported(type_field, "default, dynamic, linear, llama3, longrope, proportional, yarn")


def scaling_of(fields: ConfigFields) -> ConfigFields:
    """The object that describes the rotary embedding, in either form; empty if absent."""
    return fields.section("rope_scaling" if fields.raw("rope_scaling") else "rope_parameters")


def read_rope_of_type(fields: ConfigFields, head_dim: int, layer_type: str) -> RopeSpec:
    """The rotary embedding of layers of a type, where full attention alone is stretched for longer contexts.

    transformers 5 writes an object for each type into rope_parameters; transformers 4 wrote rope_scaling, which layers
    with a sliding window ignored.
    """
    parameters = fields.section("rope_parameters")
    if layer_type in parameters:
        return read_rope(fields, head_dim, scaling=parameters.section(layer_type))
    if layer_type == "sliding_attention":
        return RopeSpec(fields.positive_number("rope_theta", DEFAULT_THETA), head_dim)
    return read_rope(fields, head_dim)


def max_position(fields: ConfigFields, rope: RopeSpec) -> int:
    """Longest sequence the model is meant for. With yarn, max_position_embeddings often states the original length."""
    stated = fields.integer("max_position_embeddings")
    return max(stated, int(rope.original_max_position * rope.factor)) if rope.variant == "yarn" else stated


def _rotary_dim(fields: ConfigFields, scaling: ConfigFields, head_dim: int, is_partial: bool) -> int:
    source = scaling if "partial_rotary_factor" in scaling else fields
    share = source.positive_number("partial_rotary_factor", 1.0)
    if not is_partial and share != 1.0:
        raise source.unsupported("partial_rotary_factor", "1.0")
    return int(head_dim * share)


def original_max_position(fields: ConfigFields, scaling: ConfigFields) -> int:
    """The context length before the stretch."""
    # A value beside the rope object takes precedence, as in transformers.
    stated = scaling.integer("original_max_position_embeddings", fields.integer("max_position_embeddings"))
    return fields.integer("original_max_position_embeddings", stated)


def _read_yarn(fields: ConfigFields, scaling: ConfigFields, theta: float, rotary_dim: int) -> RopeSpec:
    original = original_max_position(fields, scaling)
    factor = scaling.positive_number("factor", fields.integer("max_position_embeddings") / original)
    return RopeSpec(
        theta,
        rotary_dim,
        "yarn",
        factor,
        original,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.flag("truncate", True),
        attention_factor=scaling.number("attention_factor", _yarn_attention_factor(scaling, factor)),
    )


def _read_longrope(fields: ConfigFields, scaling: ConfigFields, theta: float, rotary_dim: int) -> RopeSpec:
    original = original_max_position(fields, scaling)
    factor = scaling.positive_number("factor", fields.integer("max_position_embeddings") / original)
    stretch = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 and original > 1 else 1.0
    factors = []
    for name in ("short_factor", "long_factor"):
        factors.append(scaling.numbers(name))
        if len(factors[-1]) != rotary_dim // 2 or min(factors[-1]) <= 0:
            raise scaling.malformed(name, f"must be a list of {rotary_dim // 2} numbers above 0")
    return RopeSpec(
        theta,
        rotary_dim,
        "longrope",
        factor,
        original,
        short_factors=factors[0],
        long_factors=factors[1],
        attention_factor=scaling.number("attention_factor", stretch),
    )


def _yarn_attention_factor(scaling: ConfigFields, factor: float) -> float:
    """arXiv:2309.00071 section 3.4; mscale and mscale_all_dim are DeepSeek's extension."""

    def attention_scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    mscale, mscale_all_dim = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if mscale and mscale_all_dim:
        return attention_scale(mscale) / attention_scale(mscale_all_dim)
    return attention_scale(1.0)
