"""Mamba-2 alone: layers without attention and without feed-forward blocks, such as Codestral Mamba's."""

from pagewire_shard.layers.absent import NoFeedForwardSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.mamba2 import Mamba2Spec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.ssm import (
    check_conv_activation,
    check_groups,
    read_dt_limits,
    read_inner_heads,
    ssm_modules,
    ssm_tensors,
)

NAMES = NameMap(
    prefix="backbone.",
    layer="layers.",
    modules={"embeddings": "embed", "norm_f": "final_norm", "lm_head": "lm_head"},
    layer_modules={**ssm_modules("mixer"), "norm": ("norm", None)},
    layer_tensors=ssm_tensors("mixer"),
)
DEFAULTS: dict[str, object] = {
    "num_heads": 128,
    "head_dim": 64,
    "vocab_size": 32768,
    "hidden_size": 4096,
    "state_size": 128,
    "num_hidden_layers": 64,
    "layer_norm_epsilon": 1e-05,
    "expand": 2,
    "conv_kernel": 4,
    "n_groups": 8,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    # Configurations state none: positions are not counted, and a sequence's state is as large at any length.
    "max_position_embeddings": 131072,
}


def _mamba2(fields: ConfigFields) -> DecoderSpec:
    check_conv_activation(fields, "hidden_act")
    norm = NormSpec("rms", fields.number("layer_norm_epsilon"))
    hidden_size = fields.integer("hidden_size")
    num_heads, head_dim = read_inner_heads(fields, "num_heads", "head_dim", fields.integer("expand") * hidden_size)
    mixer = Mamba2Spec(
        num_heads=num_heads,
        head_dim=head_dim,
        num_groups=check_groups(fields, "n_groups", num_heads),
        state_size=fields.integer("state_size"),
        conv_width=fields.integer("conv_kernel"),
        norm_eps=norm.eps,
        bias=fields.flag("use_bias"),
        out_bias=fields.flag("use_bias"),
        conv_bias=fields.flag("use_conv_bias"),
        dt_limits=read_dt_limits(fields),
    )
    layer = LayerSpec(mixer, NoFeedForwardSpec(), norm, wiring="mixer")
    return DecoderSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position=fields.integer("max_position_embeddings"),
        layers=(layer,) * fields.integer("num_hidden_layers"),
        final_norm=norm,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range"),
    )


MAMBA2 = Family(_mamba2, NAMES, "mamba2", DEFAULTS)
