"""Apertus: Llama's shape with norms of each head's query and key, and an MLP without gate that xIELU activates."""

from dataclasses import replace

from pagewire_shard.layers.activation import Activation
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, with_mixers
from pagewire_shard.models.plain_mlp import Biases, plain_names, plain_spec

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 131072,
    "intermediate_size": 14336,
    "hidden_act": "xielu",
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-05,
    "rope_theta": 12000000.0,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 12000000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}
_MLP_NAMES = plain_names("mlp.up_proj", "mlp.down_proj")
NAMES = replace(
    _MLP_NAMES,
    layer_modules={
        **_MLP_NAMES.layer_modules,
        "attention_layernorm": ("mixer_norm", None),
        "feedforward_layernorm": ("feed_forward_norm", None),
    },
    layer_tensors={"mlp.act_fn.alpha_p": "xielu_positive", "mlp.act_fn.alpha_n": "xielu_negative"},
)


def _apertus(fields: ConfigFields) -> DecoderSpec:
    bias = fields.flag("attention_bias")
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    activation: Activation | None = "xielu" if fields.text("hidden_act") == "xielu" else None
    windows = [0] * fields.integer("num_hidden_layers")
    spec = plain_spec(fields, norm, Biases(qkv=bias, o=bias, mlp=False), windows, activation=activation)
    return with_mixers(spec, lambda _, attention: replace(attention, qk_norm=norm))


APERTUS = Family(_apertus, NAMES, "apertus", DEFAULTS)
