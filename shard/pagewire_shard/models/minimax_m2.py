"""MiniMax-M2: Llama's shape with norms over all queries and all keys, a part of each head rotated, and a mixture of
experts in place of every MLP."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import MIXTRAL_NAMES, check_silu, read_top_k, with_feed_forward
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec, with_mixers

NAMES = replace(
    MIXTRAL_NAMES,
    layer_tensors={
        **MIXTRAL_NAMES.layer_tensors,
        "block_sparse_moe.e_score_correction_bias": "correction",
        "mlp.e_score_correction_bias": "correction",
    },
)
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 196608,
    "rope_theta": 5000000.0,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "rotary_dim": None,
    "eos_token_id": 200020,
}
ALIASES = {"num_experts": "num_local_experts"}


def _minimax_m2(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    if "rotary_dim" in fields:
        # The released models' spelling of the part that is rotated.
        share = fields.integer("rotary_dim") / fields.integer("head_dim")
        fields = fields.with_default("partial_rotary_factor", share)
    num_experts = fields.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), "sigmoid", renormalise=True),
        has_correction=True,
        float32_router=True,
    )
    windows = [0] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False, is_partial=True)
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    spec = with_mixers(spec, lambda _, attention: replace(attention, qk_norm=norm, qk_norm_scope="all_heads"))
    return with_feed_forward(spec, moe, lambda _: True)


MINIMAX_M2 = Family(_minimax_m2, NAMES, "minimax_m2", DEFAULTS, ALIASES)
