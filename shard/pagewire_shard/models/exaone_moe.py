"""EXAONE MoE (K-EXAONE): Qwen3's shape with sliding windows, whose layers without one do not rotate their heads, and
after the first layers a mixture of experts beside a shared one."""

from dataclasses import replace

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import (
    expert_names,
    read_mlp_layer_types,
    read_sigmoid_mixture,
    with_feed_forward,
)
from pagewire_shard.models.family import Family, every_nth_full, layer_windows, read_layer_types, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec, with_mixers

CORRECTIONS = ("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias")
NAMES = replace(expert_names("mlp.shared_experts", correction=CORRECTIONS), skipped=("mtp.",))
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
    "eos_token_id": 53,
}


def _exaone_moe(fields: ConfigFields) -> DecoderSpec:
    window = read_window(fields)
    layer_types = read_layer_types(fields) or every_nth_full(fields, fields.integer("sliding_window_pattern"))
    windows = layer_windows(layer_types, window)
    spec = llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False, qk_norm=True)

    def change(index: int, attention: AttentionSpec) -> AttentionSpec:
        return replace(attention, rope=None) if window and not windows[index] else attention

    experts = read_sigmoid_mixture(fields, fields.integer("num_experts"), fields.integer("num_shared_experts"))
    is_sparse = read_mlp_layer_types(fields, num_dense=fields.count("first_k_dense_replace"))
    return with_feed_forward(with_mixers(spec, change), experts, is_sparse.__getitem__)


EXAONE_MOE = Family(_exaone_moe, NAMES, "exaone_moe", DEFAULTS, {"num_local_experts": "num_experts"})
