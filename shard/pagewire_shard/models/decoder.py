"""The decoder: every supported model is this one, built from a DecoderSpec and its weights.

The model runner calls forward and compute_logits. A pass reads everything from the ForwardBatch; between passes
only the KV caches are kept, which the runner owns.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod

import torch

from pagewire_shard.layers.block import LayerSpec, Stream, normalise
from pagewire_shard.layers.cache import SharedCacheSpec
from pagewire_shard.layers.embedding import Embedding, LearnedPositions, vocabulary_embedding
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache, rotary_rows
from pagewire_shard.layers.handover import HandoverSpec
from pagewire_shard.layers.layer_input import LayerInputs, LayerInputsSpec
from pagewire_shard.layers.linear import GatheredLinear
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.position_scale import PositionScaleSpec
from pagewire_shard.layers.rotary import RopeSpec, cos_sin_cache
from pagewire_shard.layers.weights import LayerWeights, Weights
from pagewire_shard.parallel.ranks import ALONE, CannotShare, Ranks
from pagewire_shard.parallel.stage import WHOLE, Stage, stage_bounds


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
    stage: Stage = WHOLE
    """The stage of a pipeline that this is. The layers are this stage's then."""
    first_layer: int = 0
    """The place of the first of the layers among those of all stages."""
    all_stages: "DecoderSpec | None" = None
    """What this is a stage of; None: it has all layers."""

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

    def for_stage(self, stage: Stage) -> "DecoderSpec":
        """What one stage of a pipeline has of the decoder. Raises CannotShare."""
        if stage.is_alone:
            return self
        bounds = self._stage_bounds(stage.count)
        first, end = bounds[stage.index : stage.index + 2]
        layers = tuple(layer.for_stage(first) for layer in self.layers[first:end])
        return replace(self, layers=layers, stage=stage, first_layer=first, all_stages=self)

    def _stage_bounds(self, num_stages: int) -> list[int]:
        """The first layer of each stage, and the number of layers. Layers that share a cache stay together."""
        whole = {name: prod(parameter.shape) for name, parameter in self.parameters().items()}
        held = [sum(prod(p.shape) for p in layer.parameters(self.hidden_size).values()) for layer in self.layers]
        before = sum(size for name, size in whole.items() if name == "embed" or name.startswith("layer_inputs"))
        caches = [layer.mixer.cache for layer in self.layers]
        owners = [spec.layer if isinstance(spec, SharedCacheSpec) else i for i, spec in enumerate(caches)]
        cuts = [cut for cut in range(1, len(held)) if all(owner >= cut for owner in owners[cut:])]
        bounds = stage_bounds(held, before, prod(self.lm_head.shape), cuts, num_stages)
        if bounds is None:
            raise CannotShare(f"{len(held)} layers make {len(cuts) + 1} stages at most")
        return bounds

    def handover(self, first_layer: int) -> HandoverSpec:
        """What the stage that begins with this layer is passed on by the one before it."""
        whole = self.all_stages or self
        inputs = whole.layer_inputs
        return HandoverSpec(
            hidden_size=self.hidden_size,
            has_residual=whole.layers[first_layer - 1].leaves_residual,
            layer_inputs=None if inputs is None else (len(whole.layers) - first_layer, inputs.width),
        )

    @property
    def received(self) -> HandoverSpec | None:
        """What the stage is passed on by the one before it; None: it is the first."""
        return None if self.stage.is_first else self.handover(self.first_layer)

    @property
    def passed_on(self) -> HandoverSpec | None:
        """What the stage passes on to the next one; None: it is the last."""
        return None if self.stage.is_last else self.handover(self.first_layer + len(self.layers))

    @property
    def _num_vocab_rows(self) -> int:
        """Rows of the token embeddings and of the output projection that the rank holds."""
        return self.ranks.padded_share(self.vocab_size, "tokens of the vocabulary")

    @property
    def longest_short(self) -> int:
        """The most tokens of sequences that count as short (RopeSpec.longest_short); 0: length does not matter."""
        # Of all stages: sequences count as short or long everywhere.
        ropes = (getattr(layer.mixer, "rope", None) for layer in (self.all_stages or self).layers)
        return max((rope.longest_short for rope in ropes if isinstance(rope, RopeSpec)), default=0)

    @property
    def lm_head(self) -> Parameter:
        """The output projection."""
        return Parameter("linear", (self._num_vocab_rows,), self.embedding_size or self.hidden_size, self.lm_head_bias)

    def parameters(self) -> dict[str, Parameter]:
        """All parameters by name, without the output projection if it is tied."""
        parameters = self._parameters_before()
        for index, layer in enumerate(self.layers, self.first_layer):
            own = layer.parameters(self.hidden_size)
            parameters |= {f"layers.{index}.{name}": parameter for name, parameter in own.items()}
        return parameters | self._parameters_behind()

    def _parameters_before(self) -> dict[str, Parameter]:
        """Those of the first stage, beside its layers."""
        hidden_size, embedding_size = self.hidden_size, self.embedding_size
        parameters: dict[str, Parameter] = {}
        if self.stage.is_first or (self.stage.is_last and self.tied_embeddings):
            parameters["embed"] = Parameter("table", (self._num_vocab_rows,), embedding_size or hidden_size)
        if not self.stage.is_first:
            return parameters
        if self.positions is not None:
            num_rows = self.max_position + self.positions.offset
            parameters["position_embed"] = Parameter("table", (num_rows,), hidden_size)
        if self.embedding_norm is not None:
            parameters["embedding_norm"] = self.embedding_norm.parameter(embedding_size or hidden_size)
        if embedding_size is not None:
            parameters["project_in"] = Parameter("linear", (hidden_size,), embedding_size)
        if self.layer_inputs is not None:
            parameters |= self.layer_inputs.parameters(hidden_size)
        return parameters

    def _parameters_behind(self) -> dict[str, Parameter]:
        """Those of the last stage, beside its layers."""
        parameters: dict[str, Parameter] = {}
        if not self.stage.is_last:
            return parameters
        if self.embedding_size is not None:
            parameters["project_out"] = Parameter("linear", (self.embedding_size,), self.hidden_size)
        if self.final_norm is not None:
            parameters["final_norm"] = self.final_norm.parameter(self.hidden_size)
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
                cache = caches[spec.layer - self.first_layer]
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
        self._first = FirstPart(spec, weights) if spec.stage.is_first else None
        self._received, self._passed_on = spec.received, spec.passed_on
        # Layers with the same rotary embedding share its table.
        rotary_table = cache(partial(cos_sin_cache, num_positions=spec.max_position, device=precision.device))
        self._blocks = [
            layer.build(LayerWeights(weights, f"layers.{index}.", rotary_table))
            for index, layer in enumerate(spec.layers, spec.first_layer)
        ]
        self._last = LastPart(spec, weights) if spec.stage.is_last else None
        self.layer_tables = (0,) * len(spec.layers)
        """For each layer the block table of its cache: 0 the batch's own, 1 that of the first of its `others`."""
        self.on_layer: Callable[[], None] = _ignore
        """Called after each layer; the liveness check of a long step relies on it."""

    @torch.inference_mode()
    def forward(
        self, batch: ForwardBatch, kv_caches: list[KVCache], received: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Runs the new tokens through all layers and writes their keys and values to the caches.

        Args:
            kv_caches: One for each layer.
            received: [num_tokens, width]: what the stage before this one has passed on; None: this is the first.

        Returns:
            [num_tokens, hidden_size], or [num_kept, hidden_size]: final hidden states, normalised, of the tokens that
            batch.kept names. Rows of void sequences are arbitrary. Of a stage before the last one: [num_tokens, width],
            what it passes on (see HandoverSpec).
        """
        stream, layer_inputs = self._begin(batch, received)
        batches = (batch, *batch.others)
        if layer_inputs is not None:
            batches = tuple(replace(each, layer_inputs=layer_inputs) for each in batches)
        if batch.max_lens is not None:
            rows = rotary_rows(batch, self.spec.longest_short, self.spec.max_position)
            batches = tuple(replace(each, rotary_rows=rows) for each in batches)
        if self.spec.position_scale is not None:
            scale = self.spec.position_scale.of(batch.positions).to(stream[0].dtype)
            batches = tuple(replace(each, position_scale=scale) for each in batches)
        num_left, kept = len(self._blocks), batch.kept if self._last is not None else None
        for block, kv_cache, table in zip(self._blocks, kv_caches, self.layer_tables, strict=True):
            num_left -= 1
            stream = block(stream, batches[table], kv_cache, None if num_left else kept)
            self.on_layer()
        if self._last is not None:
            return self._last.hidden(stream)
        assert self._passed_on is not None
        return self._passed_on.pack(stream, layer_inputs)

    def _begin(self, batch: ForwardBatch, received: torch.Tensor | None) -> tuple[Stream, torch.Tensor | None]:
        """What the first layer is given, and what the layers get beside it."""
        if self._first is not None:
            return self._first(batch)
        assert self._received is not None
        assert received is not None, "another stage comes before this one"
        return self._received.unpack(received)

    @torch.inference_mode()
    def compute_logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[num_rows, hidden_size], rows of forward's result -> [num_rows, vocab_size], hidden's dtype, in `out` if
        given. Only on the last stage."""
        assert self._last is not None, "the last stage has the output projection"
        return self._last.logits(hidden, out)


class FirstPart:
    """What comes before the layers: embeddings."""

    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        precision = weights.precision
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

    def __call__(self, batch: ForwardBatch) -> tuple[Stream, torch.Tensor | None]:
        """The residual stream before the first layer, and what the layers get beside it."""
        x = self._embeddings(batch)
        return (x, None), None if self._layer_inputs is None else self._layer_inputs(batch.input_ids, x)

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


class LastPart:
    """What comes behind the layers: the final norm, and the output projection."""

    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        self._spec = spec
        self._final_norm = spec.final_norm.build(weights.tensors["final_norm"]) if spec.final_norm else None
        self._project_out = weights.linears.get("project_out")
        self._lm_head = weights.linears["lm_head"]
        if not spec.ranks.is_alone:
            self._lm_head = GatheredLinear(self._lm_head, spec.vocab_size, weights.collectives)

    def hidden(self, stream: Stream) -> torch.Tensor:
        """[num_tokens, hidden_size]: final hidden states, normalised."""
        if self._final_norm is not None:
            return normalise(self._final_norm, stream)[0]
        x, residual = stream
        return x if residual is None else x + residual

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """See Decoder.compute_logits."""
        if self._project_out is not None:
            hidden = self._project_out(hidden)
        if out is None:
            out = self._lm_head(hidden)
        else:
            self._lm_head.write(hidden, out)
        if self._spec.logit_scale != 1.0:
            out.mul_(self._spec.logit_scale)
        if softcap := self._spec.logit_softcap:
            out.div_(softcap).tanh_().mul_(softcap)
        return out


def _ignore() -> None:
    """Does nothing; the default of on_layer."""
