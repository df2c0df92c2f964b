"""Qwen2 and Qwen2.5: Llama's shape with biases on query, key and value, and a sliding window on some layers."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, layer_windows, read_layer_types, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec

QWEN2_DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "eos_token_id": None,
}


def read_windows(fields: ConfigFields) -> list[int]:
    """The sliding window of each layer; 0: none.

    layer_types names the kind of each layer. Without it, and with use_sliding_window, the layers from max_window_layers
    on have a window. The field's name suggests the opposite; transformers reads it so.
    """
    num_layers = fields.integer("num_hidden_layers")
    window = read_window(fields) if fields.flag("use_sliding_window") else 0
    layer_types = read_layer_types(fields)
    if layer_types is None:
        first_with_window = fields.count("max_window_layers")
        return [window if index >= first_with_window else 0 for index in range(num_layers)]
    return layer_windows(layer_types, window)


def _qwen2(fields: ConfigFields) -> DecoderSpec:
    return llama_spec(fields, windows=read_windows(fields), qkv_bias=True, o_bias=False)


QWEN2 = Family(_qwen2, LLAMA_NAMES, "qwen2", QWEN2_DEFAULTS)
