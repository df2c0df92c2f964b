"""One layer of the decoder: a mixer, a feed-forward block, and norms and residual around them in one of nine wirings.

A block takes the residual stream and the output of the block before, which is not yet added to it: the next norm adds
the two, so that the addition needs no pass over memory of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, ParamSpec, Protocol, Self, TypeVar, runtime_checkable

import torch

from pagewire_shard.layers.cache import CacheSpec, StateSpec
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.layer_input import SideInput, SideInputSpec
from pagewire_shard.layers.norm import Norm, NormSpec
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import CannotShare, Ranks

P = ParamSpec("P")
SpecT = TypeVar("SpecT")
Stream = tuple[torch.Tensor, torch.Tensor | None]
"""(x, residual), both [num_tokens, hidden]; their sum is the residual stream. No residual: x is all of it."""

Mixer = Callable[[torch.Tensor, ForwardBatch, KVCache], torch.Tensor]
"""[num_tokens, hidden] -> [num_tokens, hidden]: combines each token with those before it in its sequence, which are in
the layer's cache."""

FeedForward = Callable[[torch.Tensor], torch.Tensor]
"""[num_tokens, hidden] -> [num_tokens, hidden]: each token by itself."""

Wiring = Literal[
    "pre", "post", "parallel", "parallel_norms", "output", "sandwich", "sandwich_own_norms", "mixer", "feed_forward"
]


class MixerSpec(Protocol):
    """One kind of mixer, such as attention."""

    @property
    def cache(self) -> CacheSpec | None:
        """What the layer keeps of each token; None: nothing."""

    @property
    def state(self) -> StateSpec | None:
        """What the layer keeps of each sequence, whatever its length; None: nothing."""

    @property
    def window(self) -> int:
        """A token is combined with itself and at most window - 1 tokens before it; 0: with all before it. Means
        nothing without `cache`."""

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """The mixer's parameters by name; no name is also one of a feed-forward block or a norm."""

    def build(self, weights: LayerWeights) -> Mixer:
        """The mixer with these parameters."""


class FeedForwardSpec(Protocol):
    """One kind of feed-forward block: dense, or a mixture of experts."""

    @property
    def active_share(self) -> float:
        """Share of its experts that a token goes through; 1 without experts."""

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """The block's parameters by name; no name is also one of a mixer or a norm."""

    def build(self, weights: LayerWeights) -> FeedForward:
        """The block with these parameters."""


@runtime_checkable
class Shared(Protocol):
    """A mixer or feed-forward block that the ranks of a tensor-parallel group share out."""

    def for_rank(self, ranks: Ranks) -> Self:
        """What one rank has of it: a spec of the same kind with fewer heads, a narrower block, or fewer experts.

        rank_slice.py derives from the two specs' parameters which rows and columns the rank holds. A product with fewer
        columns is summed over all ranks by its Linear; what else is partial the layer sums itself.

        Raises CannotShare if it cannot be shared out among so many.
        """


def part_for_rank(spec: SpecT, ranks: Ranks) -> SpecT:
    """for_rank of a spec. Raises CannotShare, with the kind's name, if it has none."""
    if not isinstance(spec, Shared):
        raise CannotShare(f"layers of {type(spec).__name__}")
    return spec.for_rank(ranks)


class Block(Protocol):
    """One layer."""

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        """kept: [num_kept] int64: the tokens that are wanted behind the layer; None: all. The mixer still needs every
        token, whose keys and values others will read; what follows it does not."""


def only(kept: torch.Tensor | None, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of the tokens that are wanted; kept: as Block has it."""
    return parts if kept is None else tuple(part.index_select(0, kept) for part in parts)


def normalise(norm: Norm, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    """norm(x + residual), and the sum itself."""
    x, residual = stream
    return (norm(x), x) if residual is None else norm.add(x, residual)


class PreNormBlock:
    """x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    norm_places: ClassVar = ("mixer_norm", "feed_forward_norm")

    def __init__(self, mixer: Mixer, feed_forward: FeedForward, mixer_norm: Norm, feed_forward_norm: Norm) -> None:
        self._mixer = mixer
        self._feed_forward = feed_forward
        self._mixer_norm = mixer_norm
        self._feed_forward_norm = feed_forward_norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = normalise(self._mixer_norm, stream)
        mixed, residual = only(kept, self._mixer(x, batch, kv_cache), residual)
        x, residual = self._feed_forward_norm.add(mixed, residual)
        return self._feed_forward(x), residual


class PostNormBlock:
    """norm(x + mixer(x)), then norm(x + feed_forward(x))."""

    norm_places: ClassVar = ("mixer_norm", "feed_forward_norm")

    def __init__(self, mixer: Mixer, feed_forward: FeedForward, mixer_norm: Norm, feed_forward_norm: Norm) -> None:
        self._mixer = mixer
        self._feed_forward = feed_forward
        self._mixer_norm = mixer_norm
        self._feed_forward_norm = feed_forward_norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, _ = stream
        x, _ = self._mixer_norm.add(*only(kept, self._mixer(x, batch, kv_cache), x))
        x, _ = self._feed_forward_norm.add(self._feed_forward(x), x)
        return x, None


class ParallelBlock:
    """x + mixer(norm(x)) + feed_forward(norm(x)), with one norm."""

    norm_places: ClassVar = ("mixer_norm",)

    def __init__(self, mixer: Mixer, feed_forward: FeedForward, norm: Norm) -> None:
        self._mixer = mixer
        self._feed_forward = feed_forward
        self._norm = norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = normalise(self._norm, stream)
        mixed, x, residual = only(kept, self._mixer(x, batch, kv_cache), x, residual)
        return mixed + self._feed_forward(x), residual


class ParallelNormsBlock:
    """x + mixer(norm(x)) + feed_forward(norm(x)), with a norm for each."""

    norm_places: ClassVar = ("mixer_norm", "feed_forward_norm")

    def __init__(self, mixer: Mixer, feed_forward: FeedForward, mixer_norm: Norm, feed_forward_norm: Norm) -> None:
        self._mixer = mixer
        self._feed_forward = feed_forward
        self._mixer_norm = mixer_norm
        self._feed_forward_norm = feed_forward_norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = normalise(self._mixer_norm, stream)
        mixed, residual = only(kept, self._mixer(x, batch, kv_cache), residual)
        return mixed + self._feed_forward(self._feed_forward_norm(residual)), residual


class OutputNormBlock:
    """x + norm(mixer(x)), then x + norm(feed_forward(x))."""

    norm_places: ClassVar = ("mixer_out_norm", "feed_forward_out_norm")

    def __init__(
        self, mixer: Mixer, feed_forward: FeedForward, mixer_out_norm: Norm, feed_forward_out_norm: Norm
    ) -> None:
        self._mixer = mixer
        self._feed_forward = feed_forward
        self._mixer_out_norm = mixer_out_norm
        self._feed_forward_out_norm = feed_forward_out_norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = stream
        if residual is not None:
            x = x + residual
        mixed, x = only(kept, self._mixer(x, batch, kv_cache), x)
        x = x + self._mixer_out_norm(mixed)
        return self._feed_forward_out_norm(self._feed_forward(x)), x


class SandwichBlock:
    """x + norm(mixer(norm(x))), then x + norm(feed_forward(norm(x)))."""

    norm_places: ClassVar = ("mixer_norm", "mixer_out_norm", "feed_forward_norm", "feed_forward_out_norm")

    def __init__(
        self,
        mixer: Mixer,
        feed_forward: FeedForward,
        mixer_norm: Norm,
        mixer_out_norm: Norm,
        feed_forward_norm: Norm,
        feed_forward_out_norm: Norm,
    ) -> None:
        self._mixer = mixer
        self._feed_forward = feed_forward
        self._mixer_norm = mixer_norm
        self._mixer_out_norm = mixer_out_norm
        self._feed_forward_norm = feed_forward_norm
        self._feed_forward_out_norm = feed_forward_out_norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = normalise(self._mixer_norm, stream)
        mixed, residual = only(kept, self._mixer(x, batch, kv_cache), residual)
        x, residual = self._feed_forward_norm.add(self._mixer_out_norm(mixed), residual)
        return self._feed_forward_out_norm(self._feed_forward(x)), residual


class SandwichOwnNormsBlock:
    """The same with a feed-forward block that norms its input itself."""

    norm_places: ClassVar = ("mixer_norm", "mixer_out_norm", "feed_forward_out_norm")

    def __init__(
        self,
        mixer: Mixer,
        feed_forward: FeedForward,
        mixer_norm: Norm,
        mixer_out_norm: Norm,
        feed_forward_out_norm: Norm,
    ) -> None:
        self._mixer = mixer
        self._feed_forward = feed_forward
        self._mixer_norm = mixer_norm
        self._mixer_out_norm = mixer_out_norm
        self._feed_forward_out_norm = feed_forward_out_norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = normalise(self._mixer_norm, stream)
        mixed, residual = only(kept, self._mixer(x, batch, kv_cache), residual)
        x = residual + self._mixer_out_norm(mixed)
        return self._feed_forward_out_norm(self._feed_forward(x)), x


class MixerBlock:
    """x + mixer(norm(x)): a layer without feed-forward block."""

    norm_places: ClassVar = ("norm",)

    def __init__(self, mixer: Mixer, feed_forward: FeedForward, norm: Norm) -> None:
        """feed_forward: Is not called."""
        self._mixer = mixer
        self._norm = norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = normalise(self._norm, stream)
        x, residual = only(kept, self._mixer(x, batch, kv_cache), residual)
        return x, residual


class FeedForwardBlock:
    """x + feed_forward(norm(x)): a layer without mixer."""

    norm_places: ClassVar = ("norm",)

    def __init__(self, mixer: Mixer, feed_forward: FeedForward, norm: Norm) -> None:
        """mixer: Is not called."""
        self._feed_forward = feed_forward
        self._norm = norm

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = only(kept, *normalise(self._norm, stream))
        return self._feed_forward(x), residual


class EndingBlock:
    """(x + side_input(x)) * scale, of the residual stream x behind another block."""

    def __init__(self, block: Block, side_input: SideInput | None, scale: torch.Tensor | None) -> None:
        self._block = block
        self._side_input = side_input
        self._scale = scale

    def __call__(
        self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache, kept: torch.Tensor | None = None
    ) -> Stream:
        x, residual = self._block(stream, batch, kv_cache, kept)
        x = x if residual is None else x + residual
        if self._side_input is not None:
            assert batch.layer_inputs is not None, "the decoder's spec has them"
            (layer_inputs,) = only(kept, batch.layer_inputs)
            x = x + self._side_input(x, layer_inputs)
        return (x if self._scale is None else x * self._scale), None


OneNormBlock = ParallelBlock | MixerBlock | FeedForwardBlock
TwoNormBlock = PreNormBlock | PostNormBlock | ParallelNormsBlock | OutputNormBlock

BLOCKS: dict[Wiring, type[TwoNormBlock | OneNormBlock | SandwichBlock | SandwichOwnNormsBlock]] = {
    "pre": PreNormBlock,
    "post": PostNormBlock,
    "parallel": ParallelBlock,
    "parallel_norms": ParallelNormsBlock,
    "output": OutputNormBlock,
    "sandwich": SandwichBlock,
    "sandwich_own_norms": SandwichOwnNormsBlock,
    "mixer": MixerBlock,
    "feed_forward": FeedForwardBlock,
}


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a decoder."""

    mixer: MixerSpec
    feed_forward: FeedForwardSpec
    norm: NormSpec
    """The norm at each of the wiring's places."""
    wiring: Wiring = "pre"
    residual_scale: float = 1.0
    """Multiplies what the mixer and the feed-forward block add to the residual stream."""
    side_input: SideInputSpec | None = None
    """What is added after the feed-forward block for the layer's own inputs; None: nothing is."""
    output_scale: bool = False
    """The residual stream is multiplied by a learned number in the end."""

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """The layer's parameters by name."""
        parameters = {place: self.norm.parameter(hidden_size) for place in BLOCKS[self.wiring].norm_places}
        parameters |= self.mixer.parameters(hidden_size) | self.feed_forward.parameters(hidden_size)
        if self.side_input is not None:
            parameters |= self.side_input.parameters(hidden_size)
        if self.output_scale:
            parameters["output_scale"] = Parameter("vector", (1,))
        return parameters

    def for_rank(self, ranks: Ranks) -> "LayerSpec":
        """What one rank has of the layer; norms, residual and side inputs are whole. Raises CannotShare."""
        mixer, feed_forward = part_for_rank(self.mixer, ranks), part_for_rank(self.feed_forward, ranks)
        return replace(self, mixer=mixer, feed_forward=feed_forward)

    def for_stage(self, first_layer: int) -> "LayerSpec":
        """The layer in a stage of a pipeline that begins with this layer: a stage is handed its own layers' inputs."""
        side_input = self.side_input
        return self if side_input is None else replace(self, side_input=side_input.counted_from(first_layer))

    @property
    def leaves_residual(self) -> bool:
        """Whether the layer leaves its output apart from the residual stream, for the next norm to add."""
        return self.wiring != "post" and self.side_input is None and not self.output_scale

    def num_active_weights(self, hidden_size: int) -> int:
        """Elements of the matrices that a token is multiplied with."""
        shares = {"linear": 1.0, "heads": 1.0, "router": 1.0, "experts": self.feed_forward.active_share}
        parameters = self.parameters(hidden_size).values()
        return round(sum(p.num_rows * p.in_features * shares.get(p.role, 0.0) for p in parameters))

    def build(self, weights: LayerWeights) -> Block:
        """The layer with these parameters."""
        block = self._wired(weights)
        if self.side_input is None and not self.output_scale:
            return block
        side_input = None if self.side_input is None else self.side_input.build(weights)
        return EndingBlock(block, side_input, weights.tensors("output_scale")["weight"] if self.output_scale else None)

    def _wired(self, weights: LayerWeights) -> Block:
        block = BLOCKS[self.wiring]
        scales = {place: self.residual_scale for place in block.norm_places if place.endswith("out_norm")}
        norms = [self.norm.build(weights.tensors(place), scales.get(place, 1.0)) for place in block.norm_places]
        mixer, feed_forward = self.mixer.build(weights), self.feed_forward.build(weights)
        if self.residual_scale != 1.0 and not scales:
            return block(_scaled(mixer, self.residual_scale), _scaled(feed_forward, self.residual_scale), *norms)
        return block(mixer, feed_forward, *norms)


def _scaled(part: Callable[P, torch.Tensor], scale: float) -> Callable[P, torch.Tensor]:
    def call(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        return part(*args, **kwargs).mul_(scale)

    return call
