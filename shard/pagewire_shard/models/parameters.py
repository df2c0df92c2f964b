"""Which parameters a decoder has, by name: what the loader fills and the decoder is built from."""

from collections.abc import Iterator

from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.spec import DecoderSpec, LayerSpec, LearnedPositions, MlpSpec, MoeSpec


def parameters(spec: DecoderSpec) -> dict[str, Parameter]:
    """All parameters of a decoder in the order of their use, without the output projection if it is tied."""
    return dict(_parameters(spec))


def lm_head(spec: DecoderSpec) -> Parameter:
    """The output projection."""
    return Parameter("linear", (spec.vocab_size,), spec.embedding_size, spec.lm_head_bias)


def _parameters(spec: DecoderSpec) -> Iterator[tuple[str, Parameter]]:
    yield "embed", Parameter("table", (spec.vocab_size,), spec.embedding_size)
    if isinstance(spec.positions, LearnedPositions):
        num_positions = spec.max_position + spec.positions.offset
        yield "position_embed", Parameter("table", (num_positions,), spec.hidden_size)
    if spec.embedding_size != spec.hidden_size:
        yield "project_in", Parameter("linear", (spec.hidden_size,), spec.embedding_size)
    for index, layer in enumerate(spec.layers):
        for name, parameter in _layer_parameters(spec, layer):
            yield f"layers.{index}.{name}", parameter
    if spec.final_norm:
        yield "final_norm", _norm(spec)
    if spec.embedding_size != spec.hidden_size:
        yield "project_out", Parameter("linear", (spec.embedding_size,), spec.hidden_size)
    if not spec.tied_embeddings:
        yield "lm_head", lm_head(spec)


def _layer_parameters(spec: DecoderSpec, layer: LayerSpec) -> Iterator[tuple[str, Parameter]]:
    query_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield "attention_norm", _norm(spec)
    yield "qkv", Parameter("linear", (query_size, kv_size, kv_size), spec.hidden_size, spec.qkv_bias)
    if spec.qk_norm:
        yield "q_norm", Parameter("norm", (spec.head_dim,))
        yield "k_norm", Parameter("norm", (spec.head_dim,))
    yield "o", Parameter("linear", (spec.hidden_size,), query_size, spec.o_bias)
    if not spec.parallel_residual:
        yield "mlp_norm", _norm(spec)
    yield from _moe_parameters(spec, layer.mlp) if isinstance(layer.mlp, MoeSpec) else _mlp_parameters(spec, layer.mlp)


def _mlp_parameters(spec: DecoderSpec, mlp: MlpSpec) -> Iterator[tuple[str, Parameter]]:
    up_parts = (mlp.intermediate_size,) * (2 if mlp.gated else 1)
    yield "up", Parameter("linear", up_parts, spec.hidden_size, mlp.bias)
    yield "down", Parameter("linear", (spec.hidden_size,), mlp.intermediate_size, mlp.bias)


def _moe_parameters(spec: DecoderSpec, moe: MoeSpec) -> Iterator[tuple[str, Parameter]]:
    yield "router", Parameter("linear", (moe.num_experts,), spec.hidden_size)
    # Gate and up of the first expert, then of the second, and so on.
    yield "experts_up", Parameter("experts", (moe.intermediate_size,) * (2 * moe.num_experts), spec.hidden_size)
    yield "experts_down", Parameter("experts", (spec.hidden_size,) * moe.num_experts, moe.intermediate_size)


def _norm(spec: DecoderSpec) -> Parameter:
    return Parameter("norm", (spec.hidden_size,), bias=spec.norm.bias)
