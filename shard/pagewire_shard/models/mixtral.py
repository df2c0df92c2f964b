"""Mixtral: Llama's shape with a mixture of experts in place of every MLP."""

from dataclasses import replace

from pagewire_shard.layers.moe import MoeSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family, read_activation, read_window
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES, MISTRAL_DEFAULTS, llama_spec

ATTENTION_NAMES = {module: place for module, place in LLAMA_NAMES.layer_modules.items() if "mlp." not in module}
FUSED_NAMES = {"mlp.experts.gate_up_proj": "experts_up", "mlp.experts.down_proj": "experts_down"}
"""transformers 5's own names, which its checkpoints contain only if saved without converting them back."""

NAMES = replace(
    LLAMA_NAMES,
    layer_modules={
        **ATTENTION_NAMES,
        "block_sparse_moe.gate": ("router", None),
        "mlp.gate": ("router", None),
    },
    experts={
        "block_sparse_moe.experts.{}.w1": ("experts_up", 2, 0),
        "block_sparse_moe.experts.{}.w3": ("experts_up", 2, 1),
        "block_sparse_moe.experts.{}.w2": ("experts_down", 1, 0),
    },
    fused_experts=FUSED_NAMES,
)


DEFAULTS: dict[str, object] = {
    **MISTRAL_DEFAULTS,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
ALIASES = {"num_experts": "num_local_experts"}


def read_top_k(fields: ConfigFields, num_experts: int) -> int:
    """num_experts_per_tok."""
    top_k = fields.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise fields.malformed("num_experts_per_tok", f"must be at most the number of experts, {num_experts}")
    return top_k


def check_silu(fields: ConfigFields) -> None:
    """Raises UnsupportedArchitecture if the experts' activation is not SiLU, the only one that fused_moe supports."""
    if read_activation(fields, "hidden_act", gated=True) != "silu":
        raise fields.unsupported("hidden_act", "silu")


def _mixtral(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    num_experts = fields.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=num_experts,
        top_k=read_top_k(fields, num_experts),
        intermediate_size=fields.integer("intermediate_size"),
        renormalise=True,
    )
    windows = [read_window(fields)] * fields.integer("num_hidden_layers")
    spec = llama_spec(fields, windows=windows, qkv_bias=False, o_bias=False)
    return replace(spec, layers=tuple(replace(layer, feed_forward=moe) for layer in spec.layers))


MIXTRAL = Family(_mixtral, NAMES, "mixtral", DEFAULTS, ALIASES)
