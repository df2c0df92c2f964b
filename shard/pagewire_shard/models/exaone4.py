"""EXAONE 4: Llama's shape with norms on what attention and MLP yield, and on each head's query and key. With sliding
windows, layers without one do not rotate their heads."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, every_nth_full, layer_windows, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec, with_mixers
from pagewire_shard.models.olmo2 import OUTPUT_NORM_NAMES

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


def _exaone4(fields: ConfigFields) -> DecoderSpec:
    windows = [0] * fields.integer("num_hidden_layers")
    if window := read_window(fields):
        windows = layer_windows(every_nth_full(fields, fields.integer("sliding_window_pattern")), window)
    spec = llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False, qk_norm=True)

    def change(index: int, attention: AttentionSpec) -> AttentionSpec:
        return replace(attention, rope=None) if window and not windows[index] else attention

    spec = with_mixers(spec, change)
    return replace(spec, layers=tuple(replace(layer, wiring="output") for layer in spec.layers))


EXAONE4 = Family(_exaone4, OUTPUT_NORM_NAMES, "exaone4", DEFAULTS)
