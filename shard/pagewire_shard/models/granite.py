"""Granite 3: Llama's shape with multipliers of embeddings, attention, residual and logits."""

from dataclasses import replace

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def _granite(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    windows = [0] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias"))
    attention_scale = fields.number("attention_multiplier")
    spec = with_mixers(spec, lambda _, attention: replace(attention, scale=attention_scale))
    residual_scale = fields.number("residual_multiplier")
    return replace(
        spec,
        layers=tuple(replace(layer, residual_scale=residual_scale) for layer in spec.layers),
        embedding_scale=fields.number("embedding_multiplier"),
        logit_scale=1.0 / fields.positive_number("logits_scaling"),
    )


GRANITE = Family(_granite, LLAMA_NAMES, "granite", DEFAULTS)
