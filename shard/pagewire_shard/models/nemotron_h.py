"""Nemotron-H: layers of one part each: Mamba-2, attention without positions, a dense block or a mixture of experts."""

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.absent import NoFeedForwardSpec, NoMixerSpec
from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import FeedForwardSpec, LayerSpec, MixerSpec
from pagewire_shard.layers.mamba2 import Mamba2Spec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec, SharedExpertSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import read_sigmoid_router
from pagewire_shard.models.family import Family, read_activation, read_head_dim, read_num_kv_heads, refuse
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.ssm import (
    check_conv_activation,
    check_groups,
    read_dt_limits,
    read_hybrid_layers,
    ssm_modules,
    ssm_tensors,
)

NAMES = NameMap(
    prefix="model.",
    layer="layers.",
    modules={"embeddings": "embed", "norm_f": "final_norm", "lm_head": "lm_head"},
    layer_modules={
        **ssm_modules("mixer"),
        "norm": ("norm", None),
        "mixer.q_proj": ("qkv", 0),
        "mixer.k_proj": ("qkv", 1),
        "mixer.v_proj": ("qkv", 2),
        "mixer.o_proj": ("o", None),
        "mixer.up_proj": ("up", None),
        "mixer.down_proj": ("down", None),
        "mixer.gate": ("router", None),
        "mixer.shared_experts.up_proj": ("shared_up", None),
        "mixer.shared_experts.down_proj": ("shared_down", None),
        "mixer.fc1_latent_proj": ("latent_in", None),
        "mixer.fc2_latent_proj": ("latent_out", None),
    },
    experts={
        "mixer.experts.{}.up_proj": ("experts_up", 1, 0),
        "mixer.experts.{}.down_proj": ("experts_down", 1, 0),
    },
    layer_tensors={
        **ssm_tensors("mixer"),
        "mixer.gate.e_score_correction_bias": "correction",
        "mixer.experts.up_proj": "experts_up",
        "mixer.experts.down_proj": "experts_down",
    },
    text_prefixes=("backbone.",),
    skipped=("mtp.",),
)
DEFAULTS: dict[str, object] = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "tie_word_embeddings": False,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "intermediate_size": 21504,
    "mlp_hidden_act": "relu2",
    "mlp_bias": False,
    "ssm_state_size": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "n_groups": 8,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "use_bias": False,
    "time_step_limit": None,
    "n_routed_experts": 8,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "eos_token_id": 2,
}
ALIASES = {"layer_types": "layers_block_type", "num_local_experts": "n_routed_experts"}
_KINDS = ("mamba", "attention", "mlp", "moe")
_DEFAULT_LAYERS = ["mamba", "moe", "attention", "mlp"]
_PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def _read_layers(fields: ConfigFields) -> list[str]:
    if fields.texts("layers_block_type") is not None:
        return read_hybrid_layers(fields, "layers_block_type", _KINDS)
    if "hybrid_override_pattern" not in fields:
        return _DEFAULT_LAYERS
    pattern = fields.text("hybrid_override_pattern")
    if set(pattern) - set(_PATTERN):
        raise fields.unsupported("hybrid_override_pattern", " ".join(_PATTERN))
    return [_PATTERN[character] for character in pattern]


def _mamba(fields: ConfigFields) -> Mamba2Spec:
    check_conv_activation(fields, "mamba_hidden_act")
    num_heads = fields.integer("mamba_num_heads")
    return Mamba2Spec(
        num_heads=num_heads,
        head_dim=fields.integer("mamba_head_dim"),
        num_groups=check_groups(fields, "n_groups", num_heads),
        state_size=fields.integer("ssm_state_size"),
        conv_width=fields.integer("conv_kernel"),
        norm_eps=fields.number("layer_norm_epsilon"),
        bias=fields.flag("use_bias"),
        out_bias=fields.flag("use_bias"),
        conv_bias=fields.flag("use_conv_bias"),
        # transformers takes time_step_min for the least step of a prompt, and none for decodes. The models were trained
        # without, and NVIDIA's own code reads this field.
        dt_limits=read_dt_limits(fields),
    )


def _attention(fields: ConfigFields) -> AttentionSpec:
    num_heads = fields.integer("num_attention_heads")
    head_dim = read_head_dim(fields, num_heads)
    return AttentionSpec(num_heads, read_num_kv_heads(fields, num_heads), head_dim, scale=head_dim**-0.5)


def _mlp(fields: ConfigFields, name: str) -> MlpSpec:
    """name: Field of the block's intermediate size."""
    activation = read_activation(fields, "mlp_hidden_act", gated=False)
    return MlpSpec(fields.integer(name), activation, gated=False, bias=fields.flag("mlp_bias"))


def _experts(fields: ConfigFields) -> SharedExpertSpec:
    shared = _mlp(fields, "moe_shared_expert_intermediate_size")
    if shared.activation != "relu2":
        raise fields.unsupported("mlp_hidden_act", "relu2 with experts")
    refuse(fields, "mlp_bias", accepted=False)
    num_experts = fields.integer("n_routed_experts")
    router: RouterSpec = read_sigmoid_router(fields, num_experts)
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=fields.integer("moe_intermediate_size"),
        router=router,
        has_correction=True,
        float32_router=True,
        gate="relu2",
        latent_size=fields.integer("moe_latent_size") if "moe_latent_size" in fields else 0,
    )
    return SharedExpertSpec(moe, shared, is_weighted=False)


def _nemotron_h(fields: ConfigFields) -> DecoderSpec:
    norm = NormSpec("rms", fields.number("layer_norm_epsilon"), float32_weight=True)

    def layer(kind: str) -> LayerSpec:
        if kind in ("mamba", "attention"):
            mixer: MixerSpec = _mamba(fields) if kind == "mamba" else _attention(fields)
            return LayerSpec(mixer, NoFeedForwardSpec(), norm, wiring="mixer")
        block: FeedForwardSpec = _experts(fields) if kind == "moe" else _mlp(fields, "intermediate_size")
        return LayerSpec(NoMixerSpec(), block, norm, wiring="feed_forward")

    kinds = _read_layers(fields)
    layers = {kind: layer(kind) for kind in dict.fromkeys(kinds)}
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        max_position=fields.integer("max_position_embeddings"),
        layers=tuple(layers[kind] for kind in kinds),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
    )


NEMOTRON_H = Family(_nemotron_h, NAMES, "nemotron_h", DEFAULTS, ALIASES)
