"""HyperCLOVA X: Granite's shape with norms on what attention and MLP yield, and logits that are multiplied."""

from dataclasses import replace

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_head_dim
from pagewire_shard.models.granite import DEFAULTS as GRANITE_DEFAULTS
from pagewire_shard.models.granite import granite
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES

NAMES = replace(
    LLAMA_NAMES,
    layer_modules={
        **LLAMA_NAMES.layer_modules,
        "post_norm1": ("mixer_out_norm", None),
        "post_norm2": ("feed_forward_out_norm", None),
    },
)
DEFAULTS: dict[str, object] = {**GRANITE_DEFAULTS, "attention_multiplier": None, "use_post_norm": True}


def _hyperclovax(fields: ConfigFields) -> DecoderSpec:
    head_dim = read_head_dim(fields, fields.integer("num_attention_heads"))
    scale = fields.number("attention_multiplier", head_dim**-0.5)
    spec = granite(fields, attention_scale=scale)
    if fields.flag("use_post_norm"):
        spec = replace(spec, layers=tuple(replace(layer, wiring="sandwich") for layer in spec.layers))
    return replace(spec, logit_scale=fields.positive_number("logits_scaling"))


HYPERCLOVAX = Family(_hyperclovax, NAMES, "hyperclovax", DEFAULTS)
