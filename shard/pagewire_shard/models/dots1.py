"""dots.llm1: Qwen3's attention, and after the first layers a mixture of experts beside a shared one."""

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import expert_names, read_sigmoid_mixture, with_feed_forward
from pagewire_shard.models.family import Family, layer_windows, read_layer_types, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec

NAMES = expert_names("mlp.shared_experts", correction=("mlp.gate.e_score_correction_bias",))
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 152064,
    "hidden_size": 4608,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 62,
    "num_key_value_heads": 32,
    "n_shared_experts": None,
    "n_routed_experts": None,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": None,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "sliding_window": 4096,
    "max_window_layers": 62,
    "eos_token_id": None,
}
ALIASES = {"num_local_experts": "n_routed_experts"}


def _dots1(fields: ConfigFields) -> DecoderSpec:
    first_with_window = fields.count("max_window_layers")
    num_layers = fields.integer("num_hidden_layers")
    layer_types = read_layer_types(fields) or [
        "full_attention" if index < first_with_window else "sliding_attention" for index in range(num_layers)
    ]
    windows = layer_windows(layer_types, read_window(fields))
    bias = fields.flag("attention_bias")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm=True)
    experts = read_sigmoid_mixture(fields, fields.integer("n_routed_experts"), fields.integer("n_shared_experts"))
    num_dense = fields.count("first_k_dense_replace")
    return with_feed_forward(spec, experts, lambda index: index >= num_dense)


DOTS1 = Family(_dots1, NAMES, "dots1", DEFAULTS, ALIASES)
