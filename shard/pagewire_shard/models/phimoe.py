"""PhiMoE (Phi-3.5-MoE, Phi-mini-MoE): Llama's shape with layer norms, perhaps biases, and a mixture of two experts,
chosen one after the other, in place of every MLP."""

from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import MIXTRAL_NAMES, check_silu
from pagewire_shard.models.family import Family, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, llama_spec
from pagewire_shard.models.rope import scaling_of

NAMES = replace(MIXTRAL_NAMES, layer_modules={**MIXTRAL_NAMES.layer_modules, "mlp.router": ("router", None)})
NUM_CHOSEN = 2
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 32064,
    "intermediate_size": 6400,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "num_local_experts": 16,
    "num_experts_per_tok": NUM_CHOSEN,
    "router_jitter_noise": 0.01,
    "lm_head_bias": False,
}


def _phimoe(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_local_experts")
    if fields.integer("num_experts_per_tok") != NUM_CHOSEN:
        raise fields.unsupported("num_experts_per_tok", str(NUM_CHOSEN))
    if num_experts < NUM_CHOSEN:
        raise fields.malformed("num_local_experts", f"must be at least {NUM_CHOSEN}")
    router = RouterSpec(NUM_CHOSEN, "sparsemixer", tolerance=2 * fields.number("router_jitter_noise"))
    moe = MoeSpec(num_experts, fields.integer("intermediate_size"), router)
    rope = scaling_of(fields)
    if rope.raw("rope_type" if "rope_type" in rope else "type") == "longrope":
        # With factors of its own of cosine and sine.
        raise rope.unsupported("rope_type" if "rope_type" in rope else "type", "default, linear, llama3, yarn")
    bias = fields.flag("attention_bias")
    windows = [read_window(fields)] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=bias, o_bias=bias)
    norm = NormSpec("layer", fields.number("rms_norm_eps"), bias=True)
    layers = tuple(replace(layer, feed_forward=moe, norm=norm) for layer in spec.layers)
    return replace(spec, layers=layers, final_norm=norm, lm_head_bias=fields.flag("lm_head_bias"))


PHIMOE = Family(_phimoe, NAMES, "phimoe", DEFAULTS)
