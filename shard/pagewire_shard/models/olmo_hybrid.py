"""OLMo Hybrid: OLMo 2's attention without or with positions on every fourth layer, and gated delta nets, whose beta may
be as large as 2, on the others. The latter have norms before their blocks, the former behind them."""

from dataclasses import replace
from typing import cast

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.gated_delta_net import GatedDeltaNetSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.experts import check_silu
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, LLAMA_NAMES, llama_spec
from pagewire_shard.models.names import NameMap
from pagewire_shard.models.rope import scaling_of

DELTA_EPSILON = 1e-5
"""Of the norm of a delta net's heads, for which the configuration has no field."""
NAMES = replace(
    LLAMA_NAMES,
    layer_modules={
        **{name: place for name, place in LLAMA_NAMES.layer_modules.items() if "layernorm" not in name},
        **{f"linear_attn.{name}_proj": ("delta_in", part) for part, name in enumerate("qkvgba")},
        **{f"linear_attn.{name}_conv1d": ("conv", part) for part, name in enumerate("qkv")},
        "linear_attn.o_norm": ("delta_norm", None),
        "linear_attn.o_proj": ("delta_out", None),
        "attention_layer_norm": ("mixer_norm", None),
        "feedforward_layer_norm": ("feed_forward_norm", None),
        "post_feedforward_layernorm": ("feed_forward_out_norm", None),
    },
    layer_tensors={"linear_attn.A_log": "log_decay", "linear_attn.dt_bias": "dt_bias"},
)
DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 100352,
    "hidden_size": 3840,
    "num_attention_heads": 30,
    "max_position_embeddings": 65536,
    "linear_num_key_heads": None,
    "linear_num_value_heads": None,
    "linear_key_head_dim": None,
    "linear_value_head_dim": None,
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
    "eos_token_id": 100257,
}


def _attends(fields: ConfigFields) -> list[bool]:
    """For each layer, whether it has attention, not a delta net."""
    num_layers = fields.integer("num_hidden_layers")
    layer_types = fields.texts("layer_types")
    if layer_types is None:
        return [index % 4 == 3 or (index == num_layers - 1 and num_layers < 4) for index in range(num_layers)]
    if len(layer_types) != num_layers:
        raise fields.malformed("layer_types", f"must have num_hidden_layers entries, {num_layers}")
    if set(layer_types) - {"full_attention", "linear_attention"}:
        raise fields.unsupported("layer_types", "full_attention, linear_attention")
    return [layer_type == "full_attention" for layer_type in layer_types]


def _delta_net(fields: ConfigFields, hidden_size: int) -> GatedDeltaNetSpec:
    num_attention_heads = fields.integer("num_attention_heads")
    num_key_heads = fields.integer("linear_num_key_heads", num_attention_heads)
    num_heads = fields.integer("linear_num_value_heads", num_attention_heads)
    if num_heads != num_key_heads:
        raise fields.unsupported("linear_num_value_heads", f"linear_num_key_heads, {num_key_heads}")
    key_dim = fields.integer("linear_key_head_dim", max(int(0.75 * hidden_size / num_key_heads), 1))
    return GatedDeltaNetSpec(
        num_key_heads=num_key_heads,
        num_heads=num_heads,
        key_dim=key_dim,
        value_dim=fields.integer("linear_value_head_dim", 2 * key_dim),
        conv_width=fields.integer("linear_conv_kernel_dim"),
        norm_eps=DELTA_EPSILON,
        conv_is_stored_apart=True,
        beta_scale=2.0 if fields.flag("linear_allow_neg_eigval") else 1.0,
    )


def _olmo_hybrid(fields: ConfigFields) -> DecoderSpec:
    check_silu(fields)
    bias, attends = fields.flag("attention_bias"), _attends(fields)
    spec = llama_spec(fields, windows=[0] * len(attends), qkv_bias=bias, o_bias=bias)
    delta_net = _delta_net(fields, spec.hidden_size)
    norm = NormSpec("rms", fields.number("rms_norm_eps"))
    # A base that is stated as null means that heads are not rotated, an absent one the default.
    rotates = scaling_of(fields).with_default("rope_theta", 0.0).raw("rope_theta") is not None

    def change(layer: LayerSpec, is_attention: bool) -> LayerSpec:
        if not is_attention:
            return replace(layer, mixer=delta_net)
        attention = cast(AttentionSpec, layer.mixer)
        rope = attention.rope if rotates else None
        return replace(
            layer, mixer=replace(attention, rope=rope, qk_norm=norm, qk_norm_scope="all_heads"), wiring="output"
        )

    layers = (change(layer, is_attention) for layer, is_attention in zip(spec.layers, attends, strict=True))
    return replace(spec, layers=tuple(layers))


def _names(spec: DecoderSpec) -> NameMap:
    """The norm behind attention has a name of its own, or, as transformers saves it, that of the norm before the MLP of
    layers with delta nets."""
    attention = [i for i, layer in enumerate(spec.layers) if isinstance(layer.mixer, AttentionSpec)]
    stored_as = ("post_attention_layernorm", "feedforward_layer_norm")
    norms = {f"layers.{i}.{name}": f"layers.{i}.mixer_out_norm" for i in attention for name in stored_as}
    return replace(NAMES, modules={**NAMES.modules, **norms})


OLMO_HYBRID = Family(_olmo_hybrid, NAMES, "olmo_hybrid", DEFAULTS, names_by_spec=_names)
