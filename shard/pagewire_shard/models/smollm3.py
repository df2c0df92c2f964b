"""SmolLM3: Llama's shape; some layers do not rotate their heads."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, layer_windows, read_layer_types, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2000000.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
    "eos_token_id": 128001,
}


def _smollm3(fields: ConfigFields) -> DecoderSpec:
    num_layers = fields.integer("num_hidden_layers")
    bias = fields.flag("attention_bias")
    window = read_window(fields) if fields.flag("use_sliding_window") else 0
    rotates = _rotates(fields, num_layers)
    layer_types = read_layer_types(fields) or ["full_attention" if each else "sliding_attention" for each in rotates]
    windows = layer_windows(layer_types, window)
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias"))

    def change(index: int, attention: AttentionSpec) -> AttentionSpec:
        return attention if rotates[index] else replace(attention, rope=None)

    return with_mixers(spec, change)


def _rotates(fields: ConfigFields, num_layers: int) -> tuple[int, ...]:
    """For each layer, whether it rotates its heads, as no_rope_layers says in spite of its name."""
    stated = fields.integers("no_rope_layers")
    if stated and len(stated) != num_layers:
        raise fields.malformed("no_rope_layers", f"must have num_hidden_layers entries, {num_layers}")
    interval = fields.integer("no_rope_layer_interval")
    return stated or tuple((index + 1) % interval for index in range(num_layers))


SMOLLM3 = Family(_smollm3, LLAMA_NAMES, "smollm3", DEFAULTS)
