"""The decoder: every supported model is this one, built from a DecoderSpec and its weights.

The model runner calls forward and compute_logits. All that a pass needs comes in the ForwardBatch; nothing is kept
between passes but the KV caches, which the runner owns.
"""

from collections.abc import Callable

import torch

from pagewire_shard.layers.attention import Attention
from pagewire_shard.layers.block import (
    Block,
    FeedForward,
    ParallelBlock,
    PostNormBlock,
    PreNormBlock,
    Stream,
    normalise,
)
from pagewire_shard.layers.embedding import Embedding
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.mlp import Mlp
from pagewire_shard.layers.moe import MixtureOfExperts
from pagewire_shard.layers.norm import Norm
from pagewire_shard.layers.rotary import cos_sin_cache
from pagewire_shard.layers.spec import DecoderSpec, LearnedPositions, MlpSpec, MoeSpec
from pagewire_shard.layers.weights import Weights


class Decoder:
    """A decoder-only transformer on one device."""

    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        self.spec = spec
        builder = _Builder(spec, weights)
        self._embed = builder.embedding("embed")
        self._position_embed = builder.position_embedding()
        self._project_in = weights.linears.get("project_in")
        self._blocks = [builder.block(index) for index in range(spec.num_layers)]
        self._final_norm = builder.norm("final_norm") if spec.final_norm else None
        self._project_out = weights.linears.get("project_out")
        self._lm_head = weights.linears["lm_head"]
        self.on_layer: Callable[[], None] = _ignore
        """Called after each layer, as a sign of life of a long step."""

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_caches: list[KVCache]) -> torch.Tensor:
        """Runs the new tokens through all layers and writes their keys and values to the caches.

        Args:
            kv_caches: One for each layer.

        Returns:
            [num_tokens, hidden_size]: final hidden states, normalised. Rows of void
            sequences are arbitrary.
        """
        stream: Stream = (self._embeddings(batch), None)
        for block, kv_cache in zip(self._blocks, kv_caches, strict=True):
            stream = block(stream, batch, kv_cache)
            self.on_layer()
        if self._final_norm is not None:
            return normalise(self._final_norm, stream)[0]
        x, residual = stream
        return x if residual is None else x + residual

    @torch.inference_mode()
    def compute_logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[num_rows, hidden_size], rows of forward's result -> [num_rows, vocab_size], hidden's dtype, in `out` if
        given."""
        if self._project_out is not None:
            hidden = self._project_out(hidden)
        logits = self._lm_head(hidden)
        return logits if out is None else out.copy_(logits)

    def _embeddings(self, batch: ForwardBatch) -> torch.Tensor:
        x = self._embed(batch.input_ids)
        if self._project_in is not None:
            x = self._project_in(x)
        if self._position_embed is not None:
            x = x + self._position_embed(batch.positions)
        return x


def _ignore() -> None:
    """Nobody watches."""


class _Builder:
    """Makes a decoder's parts of its weights."""

    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        self._spec = spec
        self._weights = weights
        positions, device = spec.positions, weights.precision.device
        self._cos_sin_cache = (
            None if isinstance(positions, LearnedPositions) else cos_sin_cache(positions, spec.max_position, device)
        )

    def embedding(self, name: str, offset: int = 0) -> Embedding:
        return Embedding(self._weights.tensors[name]["weight"], self._weights.precision.activations, offset)

    def position_embedding(self) -> Embedding | None:
        positions = self._spec.positions
        return self.embedding("position_embed", positions.offset) if isinstance(positions, LearnedPositions) else None

    def norm(self, name: str) -> Norm:
        return self._spec.norm.build(self._weights.tensors[name])

    def _qk_norms(self, name: str) -> tuple[Norm, Norm] | None:
        norm, tensors = self._spec.qk_norm, self._weights.tensors
        return (norm.build(tensors[name + "q_norm"]), norm.build(tensors[name + "k_norm"])) if norm else None

    def _feed_forward(self, name: str, mlp: MlpSpec | MoeSpec) -> FeedForward:
        linears, tensors = self._weights.linears, self._weights.tensors
        if isinstance(mlp, MoeSpec):
            up, down = tensors[name + "experts_up"]["weight"], tensors[name + "experts_down"]["weight"]
            return MixtureOfExperts(mlp, linears[name + "router"], up, down)
        return Mlp(mlp, linears[name + "up"], linears[name + "down"])

    def block(self, index: int) -> Block:
        name = f"layers.{index}."
        linears = self._weights.linears
        layer = self._spec.layers[index]
        attention = Attention(
            self._spec, layer, linears[name + "qkv"], linears[name + "o"], self._cos_sin_cache, self._qk_norms(name)
        )
        mlp = self._feed_forward(name, layer.mlp)
        attention_norm = self.norm(name + "attention_norm")
        if self._spec.parallel_residual:
            return ParallelBlock(attention_norm, attention, mlp)
        block = PreNormBlock if self._spec.norm_place == "pre" else PostNormBlock
        return block(attention_norm, attention, self.norm(name + "mlp_norm"), mlp)
