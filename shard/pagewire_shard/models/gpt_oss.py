"""gpt-oss: Llama's shape with attention sinks, a sliding window on every other layer, and experts with biases and a
clamped gate. Experts in MXFP4, as they were published, are dequantized while they are read."""

from dataclasses import replace
from typing import cast

import torch
from pagewire_kernels.fused_moe import ClampedSwiglu, RouterSpec

from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import ATTENTION_NAMES, check_silu, read_top_k
from pagewire_shard.models.family import Family, every_nth_full, layer_windows, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec, with_mixers

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "attention_bias": True,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "rope_theta": 150000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "eos_token_id": None,
}
ALIASES = {"num_experts": "num_local_experts"}
WINDOW_PATTERN = 2


def _gates_first(layer: LayerSpec) -> torch.Tensor:
    """For each row of experts_up the stored one: a checkpoint has an expert's rows of gate and up by turns."""
    moe = cast(MoeSpec, layer.feed_forward)
    rows = torch.arange(2 * moe.num_experts * moe.intermediate_size)
    return rows.view(moe.num_experts, moe.intermediate_size, 2).transpose(1, 2).flatten()


NAMES = replace(
    LLAMA_NAMES,
    layer_modules={**ATTENTION_NAMES, "mlp.router": ("router", None)},
    layer_tensors={
        "self_attn.sinks": "sinks",
        "mlp.experts.gate_up_proj": "experts_up",
        "mlp.experts.gate_up_proj_bias": "experts_up.bias",
        "mlp.experts.down_proj": "experts_down",
        "mlp.experts.down_proj_bias": "experts_down.bias",
    },
    row_orders={"mlp.experts.gate_up_proj": _gates_first, "mlp.experts.gate_up_proj_bias": _gates_first},
    transposed_experts=True,
)


def _gpt_oss(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("intermediate_size"),
        router=RouterSpec(read_top_k(fields, num_experts), renormalise=True),
        bias=True,
        gate=ClampedSwiglu(fields.positive_number("swiglu_alpha"), fields.positive_number("swiglu_limit")),
    )
    windows = layer_windows(every_nth_full(fields, WINDOW_PATTERN), read_window(fields))
    bias = fields.flag("attention_bias")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias)
    spec = with_mixers(spec, lambda _, attention: replace(attention, sinks=True))
    norm = replace(spec.layers[0].norm, float32_weight=True)
    layers = tuple(replace(layer, feed_forward=moe, norm=norm) for layer in spec.layers)
    return replace(spec, layers=layers, final_norm=norm)


GPT_OSS = Family(_gpt_oss, NAMES, "gpt_oss", DEFAULTS, ALIASES, quantizations=("mxfp4",))
