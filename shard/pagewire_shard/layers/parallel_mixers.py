"""Attention and Mamba-2 side by side in one layer, each scaled (Falcon-H1)."""

from dataclasses import dataclass, replace

import torch

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import Mixer
from pagewire_shard.layers.cache import CacheSpec, StateSpec
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.mamba2 import Mamba2Spec
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class ParallelMixersSpec:
    """attention_scale * attention(x) + ssm_scale * ssm(x)."""

    attention: AttentionSpec
    ssm: Mamba2Spec
    attention_scale: float = 1.0
    ssm_scale: float = 1.0

    @property
    def cache(self) -> CacheSpec | None:
        """See MixerSpec."""
        return self.attention.cache

    @property
    def state(self) -> StateSpec | None:
        """See MixerSpec."""
        return self.ssm.state

    @property
    def window(self) -> int:
        """See MixerSpec."""
        return self.attention.window

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See MixerSpec."""
        return self.attention.parameters(hidden_size) | self.ssm.parameters(hidden_size)

    def for_rank(self, ranks: Ranks) -> "ParallelMixersSpec":
        """See Shared."""
        return replace(self, attention=self.attention.for_rank(ranks), ssm=self.ssm.for_rank(ranks))

    def build(self, weights: LayerWeights) -> Mixer:
        """See MixerSpec."""
        attention, ssm = self.attention.build(weights), self.ssm.build(weights)
        num_states = len(self.ssm.state.tensors)

        def mix(x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
            out = ssm(x, batch, kv_cache[-num_states:]).mul_(self.ssm_scale)
            return out.add_(attention(x, batch, kv_cache[:-num_states]), alpha=self.attention_scale)

        return mix
