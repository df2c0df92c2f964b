"""Granite with sliding windows: a learned sink in the softmax of every head, a window on three of four layers, and a
base of the rotation for each layer, or none."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, layer_windows, read_layer_types, read_window
from pagewire_shard.models.granite import DEFAULTS, granite
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, with_mixers

SINKS = {"self_attn.sinks": "sinks"}
NAMES = replace(LLAMA_NAMES, layer_tensors=SINKS)
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


GRANITE_SWA = Family(_granite_swa, NAMES, "granite_swa", SWA_DEFAULTS)
