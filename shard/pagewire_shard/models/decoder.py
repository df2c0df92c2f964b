"""The decoder: every supported model is this one, built from a DecoderSpec and its weights.

The model runner calls forward and compute_logits. A pass reads everything from the ForwardBatch; between passes
only the KV caches are kept, which the runner owns.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from pagewire_shard.layers.block import LayerSpec, Stream, normalise
from pagewire_shard.layers.cache import SharedCacheSpec
from pagewire_shard.layers.embedding import Embedding, LearnedPositions, vocabulary_embedding
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache, rotary_rows
from pagewire_shard.layers.layer_input import LayerInputs, LayerInputsSpec
from pagewire_shard.layers.linear import GatheredLinear
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.position_scale import PositionScaleSpec
from pagewire_shard.layers.rotary import RopeSpec, cos_sin_cache
from pagewire_shard.layers.weights import LayerWeights, Weights
from pagewire_shard.parallel.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer, as data: embeddings, layers that each declare themselves, and the output projection.

    Every option here and in the layers' specs is there because a supported family needs it.
    """

    vocab_size: int
    hidden_size: int
    max_position: int
    """Longest sequence the positions allow."""
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec | None
    tied_embeddings: bool
    """The output projection is the token embedding table."""
    initializer_range: float
    """Standard deviation of dummy weights."""
    embedding_size: int | None = None
    """Width of the token embeddings, which are projected to and from hidden_size; None: hidden_size, no projection."""
    positions: LearnedPositions | None = None
    """Position embeddings; None: positions, if any, are the mixers' own."""
    lm_head_bias: bool = False
    layer_inputs: LayerInputsSpec | None = None
    """What each layer gets beside the residual stream; None: nothing."""
    position_scale: PositionScaleSpec | None = None
    """The factors of queries by their positions, for mixers that ask for it; None: there are none."""
    embedding_norm: NormSpec | None = None
    """The norm of the token embeddings."""
    embedding_scale: float = 1.0
    """Multiplies the token embeddings."""
    rounds_embedding_scale: bool = False
    """embedding_scale is rounded to the dtype of the embeddings' table, which is how the model was trained."""
    logit_scale: float = 1.0
    """Multiplies the logits."""
    logit_softcap: float = 0.0
    """Scaled logits become cap * tanh(logit / cap); 0: they stay."""
    ranks: Ranks = ALONE
    """Those that share the decoder out. The layers are this rank's parts then; sizes here are those of all of it."""

    def for_rank(self, ranks: Ranks) -> "DecoderSpec":
        """What one rank has of the decoder. Raises CannotShare."""
        if ranks.is_alone:
            return self
        spec = replace(
            self,
            ranks=ranks,
            layers=tuple(layer.for_rank(ranks) for layer in self.layers),
            layer_inputs=self.layer_inputs and self.layer_inputs.for_rank(ranks),
        )
        spec.parameters()  # raises what is left to raise
        return spec

    @property
    def _num_vocab_rows(self) -> int:
        """Rows of the token embeddings and of the output projection that the rank holds."""
        return self.ranks.padded_share(self.vocab_size, "tokens of the vocabulary")

    @property
    def longest_short(self) -> int:
        """The most tokens of sequences that count as short (RopeSpec.longest_short); 0: length does not matter."""
        ropes = (getattr(layer.mixer, "rope", None) for layer in self.layers)
        return max((rope.longest_short for rope in ropes if isinstance(rope, RopeSpec)), default=0)

    @property
    def lm_head(self) -> Parameter:
        """The output projection."""
        return Parameter("linear", (self._num_vocab_rows,), self.embedding_size or self.hidden_size, self.lm_head_bias)

    def parameters(self) -> dict[str, Parameter]:
        """All parameters by name, without the output projection if it is tied."""
        hidden_size, embedding_size = self.hidden_size, self.embedding_size
        parameters = {"embed": Parameter("table", (self._num_vocab_rows,), embedding_size or hidden_size)}
        if self.positions is not None:
            num_rows = self.max_position + self.positions.offset
            parameters["position_embed"] = Parameter("table", (num_rows,), hidden_size)
        if self.embedding_norm is not None:
            parameters["embedding_norm"] = self.embedding_norm.parameter(embedding_size or hidden_size)
        if embedding_size is not None:
            parameters["project_in"] = Parameter("linear", (hidden_size,), embedding_size)
            parameters["project_out"] = Parameter("linear", (embedding_size,), hidden_size)
        if self.layer_inputs is not None:
            parameters |= self.layer_inputs.parameters(hidden_size)
        for index, layer in enumerate(self.layers):
            own = layer.parameters(hidden_size)
            parameters |= {f"layers.{index}.{name}": parameter for name, parameter in own.items()}
        if self.final_norm is not None:
            parameters["final_norm"] = self.final_norm.parameter(hidden_size)
        if not self.tied_embeddings:
            parameters["lm_head"] = self.lm_head
        return parameters

    @property
    def num_active_weights(self) -> int:
        """Elements of all layers' matrices that a token is multiplied with."""
        return sum(layer.num_active_weights(self.hidden_size) for layer in self.layers)

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block of the pool takes in the caches of all layers."""
        return sum(spec.block_bytes(block_size, dtype) for layer in self.layers if (spec := layer.mixer.cache))

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that one state slot takes in all layers."""
        return sum(state.slot_bytes(dtype) for layer in self.layers if (state := layer.mixer.state))

    def allocate_caches(
        self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device, num_states: int = 1
    ) -> list[KVCache]:
        """One cache for each layer, uninitialised."""
        caches: list[KVCache] = []
        for layer in self.layers:
            spec, state = layer.mixer.cache, layer.mixer.state
            cache: KVCache = ()
            if isinstance(spec, SharedCacheSpec):
                cache = caches[spec.layer]
            elif spec is not None:
                cache = spec.allocate(num_blocks, block_size, dtype, device)
            caches.append(cache if state is None else (*cache, *state.allocate(num_states, dtype, device)))
        return caches


class Decoder:
    """A decoder-only transformer on one device."""

    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        self.spec = spec
        precision = weights.precision
        self.dtype = precision.activations
        """Of hidden states and logits."""
        table = weights.tensors["embed"]["weight"]
        self._embed = vocabulary_embedding(table, precision.activations, weights.collectives)
        self._embedding_scale = spec.embedding_scale
        if spec.rounds_embedding_scale:
            self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=table.dtype).item()
        self._position_embed = None
        if spec.positions:
            positions = weights.tensors["position_embed"]["weight"]
            self._position_embed = Embedding(positions, precision.activations, spec.positions.offset)
        norm = spec.embedding_norm
        self._embedding_norm = norm.build(weights.tensors["embedding_norm"]) if norm else None
        self._layer_inputs = LayerInputs(spec.layer_inputs, weights, spec.hidden_size) if spec.layer_inputs else None
        self._project_in = weights.linears.get("project_in")
        self._project_out = weights.linears.get("project_out")
        # Layers with the same rotary embedding share its table.
        rotary_table = cache(partial(cos_sin_cache, num_positions=spec.max_position, device=precision.device))
        self._blocks = [
            layer.build(LayerWeights(weights, f"layers.{index}.", rotary_table))
            for index, layer in enumerate(spec.layers)
        ]
        self._final_norm = spec.final_norm.build(weights.tensors["final_norm"]) if spec.final_norm else None
        self._lm_head = weights.linears["lm_head"]
        if not spec.ranks.is_alone:
            self._lm_head = GatheredLinear(self._lm_head, spec.vocab_size, weights.collectives)
        self.layer_tables = (0,) * len(spec.layers)
        """For each layer the block table of its cache: 0 the batch's own, 1 that of the first of its `others`."""
        self.on_layer: Callable[[], None] = _ignore
        """Called after each layer; the liveness check of a long step relies on it."""

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_caches: list[KVCache]) -> torch.Tensor:
        """Runs the new tokens through all layers and writes their keys and values to the caches.

        Args:
            kv_caches: One for each layer.

        Returns:
            [num_tokens, hidden_size], or [num_kept, hidden_size]: final hidden states, normalised, of the tokens that
            batch.kept names. Rows of void sequences are arbitrary.
        """
        x, batches = self._embeddings(batch), (batch, *batch.others)
        if self._layer_inputs is not None:
            layer_inputs = self._layer_inputs(batch.input_ids, x)
            batches = tuple(replace(each, layer_inputs=layer_inputs) for each in batches)
        if batch.max_lens is not None:
            rows = rotary_rows(batch, self.spec.longest_short, self.spec.max_position)
            batches = tuple(replace(each, rotary_rows=rows) for each in batches)
        if self.spec.position_scale is not None:
            scale = self.spec.position_scale.of(batch.positions).to(x.dtype)
            batches = tuple(replace(each, position_scale=scale) for each in batches)
        stream: Stream = (x, None)
        num_left = len(self._blocks)
        for block, kv_cache, table in zip(self._blocks, kv_caches, self.layer_tables, strict=True):
            num_left -= 1
            stream = block(stream, batches[table], kv_cache, None if num_left else batch.kept)
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
        if out is None:
            out = self._lm_head(hidden)
        else:
            self._lm_head.write(hidden, out)
        if self.spec.logit_scale != 1.0:
            out.mul_(self.spec.logit_scale)
        if softcap := self.spec.logit_softcap:
            out.div_(softcap).tanh_().mul_(softcap)
        return out

    def _embeddings(self, batch: ForwardBatch) -> torch.Tensor:
        x = self._embed(batch.input_ids)
        if self._embedding_scale != 1.0:
            x = x * self._embedding_scale
        if self._embedding_norm is not None:
            x = self._embedding_norm(x)
        if self._project_in is not None:
            x = self._project_in(x)
        if self._position_embed is not None:
            x = x + self._position_embed(batch.positions)
        return x


def _ignore() -> None:
    """Does nothing; the default of on_layer."""
