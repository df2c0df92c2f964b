"""Granite with sliding windows: a learned sink in the softmax of every head, a window on three of four layers, and a
base of the rotation for each layer, or none; dense, or with experts."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, layer_windows, read_layer_types, read_window
from pagewire_shard.models.granite import DEFAULTS, MOE_DEFAULTS, MOE_NAMES, granite, read_mixture
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, with_mixers

SINKS = {"self_attn.sinks": "sinks"}
NAMES = replace(LLAMA_NAMES, layer_tensors=SINKS)
SWA_MOE_NAMES = replace(
    MOE_NAMES,
    layer_modules={**MOE_NAMES.layer_modules, "block_sparse_moe.router": ("router", None)},
    layer_tensors={
        "block_sparse_moe.experts.gate_up_proj": "experts_up",
        "block_sparse_moe.experts.down_proj": "experts_down",
        **SINKS,
    },
)
WINDOWS: dict[str, object] = {"sliding_window": 128, "layer_types": None, "layer_rope_theta": None}
SWA_DEFAULTS: dict[str, object] = {
    **DEFAULTS,
    **WINDOWS,
    "vocab_size": 100352,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "eos_token_id": 100257,
}


def _granite_swa(fields: ConfigFields) -> DecoderSpec:
    num_layers = fields.integer("num_hidden_layers")
    default = tuple("sliding_attention" if index % 4 else "full_attention" for index in range(num_layers))
    windows = layer_windows(read_layer_types(fields) or default, read_window(fields))
    thetas = fields.numbers("layer_rope_theta")
    if thetas and len(thetas) != num_layers:
        raise fields.malformed("layer_rope_theta", f"must have num_hidden_layers entries, {num_layers}")

    def change(index: int, attention: AttentionSpec) -> AttentionSpec:
        rope = _with_theta(attention.rope, thetas[index]) if thetas else attention.rope
        return replace(attention, sliding_window=windows[index], sinks=True, rope=rope)

    return with_mixers(granite(fields), change)


def _with_theta(rope: RopeSpec | None, theta: float) -> RopeSpec | None:
    """The rotation with this base; 0: there is none."""
    return replace(rope, theta=theta) if rope and theta else None


def _granite_moe_swa(fields: ConfigFields) -> DecoderSpec:
    feed_forward, spec = read_mixture(fields), _granite_swa(fields)
    return replace(spec, layers=tuple(replace(layer, feed_forward=feed_forward) for layer in spec.layers))


GRANITE_SWA = Family(_granite_swa, NAMES, "granite_swa", SWA_DEFAULTS)
GRANITE_MOE_SWA = Family(
    _granite_moe_swa, SWA_MOE_NAMES, "granitemoe_swa", {**MOE_DEFAULTS, **WINDOWS, "shared_intermediate_size": 0}
)
