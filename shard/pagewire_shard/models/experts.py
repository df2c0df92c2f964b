"""Readers of what configurations say of mixtures of experts, and the names that several families store them under."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from pagewire_kernels.fused_moe import RouterSpec

from pagewire_shard.layers.block import FeedForwardSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MoeSpec, SharedExpertSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import read_activation
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_NAMES
from pagewire_shard.models.names import NameMap

ATTENTION_NAMES = {module: place for module, place in LLAMA_NAMES.layer_modules.items() if "mlp." not in module}
"""Llama's layer modules but for the MLP's."""
FUSED_NAMES = {"mlp.experts.gate_up_proj": "experts_up", "mlp.experts.down_proj": "experts_down"}
"""transformers 5's own names, which its checkpoints contain only if saved without converting them back."""
MIXTRAL_NAMES = replace(
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
    layer_tensors=FUSED_NAMES,
)
EXPERT_NAMES = replace(
    LLAMA_NAMES,
    layer_modules={**LLAMA_NAMES.layer_modules, "mlp.gate": ("router", None)},
    experts={
        "mlp.experts.{}.gate_proj": ("experts_up", 2, 0),
        "mlp.experts.{}.up_proj": ("experts_up", 2, 1),
        "mlp.experts.{}.down_proj": ("experts_down", 1, 0),
    },
    layer_tensors=FUSED_NAMES,
)
"""Llama's names with Qwen2-MoE's of the experts."""


def expert_names(
    shared: str | None = None,
    correction: tuple[str, ...] = (),
    modules: Mapping[str, str] | None = None,
    *,
    mtp_layers: bool = False,
) -> NameMap:
    """EXPERT_NAMES with more.

    Args:
        shared: Module of the shared expert within a layer, such as "mlp.shared_experts"; None: there is none.
        correction: Tensors within a layer that the correction of the router's scores may be stored as.
        modules: More modules within a layer -> parameter.
        mtp_layers: See NameMap.
    """
    layer_modules = {**EXPERT_NAMES.layer_modules, **{name: (target, None) for name, target in (modules or {}).items()}}
    if shared is not None:
        layer_modules |= {
            f"{shared}.gate_proj": ("shared_up", 0),
            f"{shared}.up_proj": ("shared_up", 1),
            f"{shared}.down_proj": ("shared_down", None),
        }
    tensors = {**FUSED_NAMES, **dict.fromkeys(correction, "correction")}
    return replace(EXPERT_NAMES, layer_modules=layer_modules, layer_tensors=tensors, mtp_layers=mtp_layers)


def read_top_k(fields: ConfigFields, num_experts: int, name: str = "num_experts_per_tok") -> int:
    """Experts of each token, from field `name`."""
    top_k = fields.integer(name)
    if top_k > num_experts:
        raise fields.malformed(name, f"must be at most the number of experts, {num_experts}")
    return top_k


def check_silu(fields: ConfigFields) -> None:
    """Raises UnsupportedArchitecture if the experts' activation is not SiLU, the only one that fused_moe supports."""
    if read_activation(fields, "hidden_act", gated=True) != "silu":
        raise fields.unsupported("hidden_act", "silu")


def read_sigmoid_router(fields: ConfigFields, num_experts: int) -> RouterSpec:
    """DeepSeek-V3's router (arXiv:2412.19437, section 2.1.2): sigmoid scores, which choose within the best groups."""
    num_groups = fields.integer("n_group", 1)
    top_groups = fields.integer("topk_group", 1)
    if num_experts % num_groups or (num_groups > 1 and num_experts < 2 * num_groups):
        raise fields.malformed("n_group", f"must make groups of two experts or more of {num_experts}")
    if top_groups > num_groups:
        raise fields.malformed("topk_group", f"must be at most n_group, {num_groups}")
    return RouterSpec(
        read_top_k(fields, num_experts // num_groups * top_groups),
        "sigmoid",
        renormalise=fields.flag("norm_topk_prob"),
        scale=fields.number("routed_scaling_factor"),
        num_groups=num_groups,
        top_groups=top_groups,
    )


def read_sigmoid_mixture(
    fields: ConfigFields, num_experts: int, num_shared: int, router: RouterSpec | None = None
) -> FeedForwardSpec:
    """A mixture with a corrected router, read_sigmoid_router's by default, and perhaps shared experts, each of
    moe_intermediate_size."""
    check_silu(fields)
    size = fields.integer("moe_intermediate_size")
    moe = MoeSpec(
        num_experts=num_experts,
        intermediate_size=size,
        router=router or read_sigmoid_router(fields, num_experts),
        has_correction=True,
        float32_router=True,
    )
    return with_shared_expert(moe, size * num_shared)


def read_mlp_layer_types(fields: ConfigFields, num_dense: int) -> tuple[bool, ...]:
    """For each layer, whether it has experts, as mlp_layer_types says; by default all but the first num_dense do."""
    num_layers = fields.integer("num_hidden_layers")
    stated = fields.texts("mlp_layer_types")
    if stated is None:
        return tuple(index >= num_dense for index in range(num_layers))
    if len(stated) != num_layers:
        raise fields.malformed("mlp_layer_types", f"must have num_hidden_layers entries, {num_layers}")
    if set(stated) - {"dense", "sparse"}:
        raise fields.unsupported("mlp_layer_types", "dense, sparse")
    return tuple(kind == "sparse" for kind in stated)


def with_shared_expert(moe: MoeSpec, size: int, *, bias: bool = False) -> FeedForwardSpec:
    """The mixture beside an expert of intermediate size `size` that every token goes through; 0: without."""
    return SharedExpertSpec(moe, MlpSpec(size, "silu", gated=True, bias=bias), is_weighted=False) if size else moe


def with_feed_forward(spec: DecoderSpec, experts: FeedForwardSpec, is_sparse: Callable[[int], bool]) -> DecoderSpec:
    """The decoder with experts in the layers whose index `is_sparse` takes."""
    layers = (
        replace(layer, feed_forward=experts) if is_sparse(index) else layer for index, layer in enumerate(spec.layers)
    )
    return replace(spec, layers=tuple(layers))
