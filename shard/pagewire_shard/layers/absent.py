"""The part that a layer does without: its mixer, or its feed-forward block."""

from dataclasses import dataclass

import torch

from pagewire_shard.layers.block import FeedForward, Mixer
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class NoMixerSpec:
    """The mixer of a layer of wiring "feed_forward"."""

    @property
    def cache(self) -> None:
        """See MixerSpec."""
        return None

    @property
    def state(self) -> None:
        """See MixerSpec."""
        return None

    @property
    def window(self) -> int:
        """See MixerSpec."""
        return 0

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See MixerSpec."""
        return {}

    def for_rank(self, ranks: Ranks) -> "NoMixerSpec":
        """See Shared."""
        return self

    def build(self, weights: LayerWeights) -> Mixer:
        """See MixerSpec."""
        return _no_mixer


@dataclass(frozen=True, slots=True)
class NoFeedForwardSpec:
    """The feed-forward block of a layer of wiring "mixer"."""

    @property
    def active_share(self) -> float:
        """See FeedForwardSpec."""
        return 1.0

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See FeedForwardSpec."""
        return {}

    def for_rank(self, ranks: Ranks) -> "NoFeedForwardSpec":
        """See Shared."""
        return self

    def build(self, weights: LayerWeights) -> FeedForward:
        """See FeedForwardSpec."""
        return _no_feed_forward


def _no_mixer(x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
    raise AssertionError("the layer's wiring has no mixer")


def _no_feed_forward(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the layer's wiring has no feed-forward block")
