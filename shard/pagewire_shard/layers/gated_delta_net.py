"""The gated delta net: of each sequence its state is a matrix for each head, and the last inputs of a convolution."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from pagewire_kernels.causal_conv import ConvInputs, causal_conv
from pagewire_kernels.gated_delta_net import DeltaInputs, gated_delta_net

from pagewire_shard.layers.cache import StateSpec, StateTensor
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class GatedDeltaNetSpec:
    """out(norm(delta(silu(conv(q, k, v)), beta, decay)) * silu(gate)); all of them are products of the hidden state.

    Source: arXiv:2412.06464.
    """

    num_key_heads: int
    """Heads of q and k, each of which serves num_heads // num_key_heads consecutive heads."""
    num_heads: int
    """Heads of v, gate, beta and decay."""
    key_dim: int
    value_dim: int
    conv_width: int
    """Tokens that the convolution sums over, at least 2."""
    norm_eps: float
    """Of the norm of each head's output."""
    beta_scale: float = 1.0
    """Upper bound of beta, with which a token replaces what the state holds for its key; beyond 1 it inverts that."""
    stored_as: tuple[int, ...] = (1, 1, 1, 1, 1, 1)
    """How many of q, k, v, gate, beta and decay each matrix of a checkpoint makes."""
    conv_is_stored_apart: bool = False
    """Checkpoints store the convolutions of q, k and v each by itself."""

    @property
    def cache(self) -> None:
        """See MixerSpec."""
        return None

    @property
    def state(self) -> StateSpec:
        """See MixerSpec."""
        conv = StateTensor((self.conv_width - 1, sum(self.sizes[:3])))
        return StateSpec((conv, StateTensor((self.num_heads, self.key_dim, self.value_dim), torch.float32)))

    @property
    def window(self) -> int:
        """See MixerSpec."""
        return 0

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Rows of q, k, v, gate, beta and decay."""
        keys, values = self.num_key_heads * self.key_dim, self.num_heads * self.value_dim
        return keys, keys, values, values, self.num_heads, self.num_heads

    def for_rank(self, ranks: Ranks) -> "GatedDeltaNetSpec":
        """See Shared: each rank has some of the key heads, and the heads that these serve."""
        num_key_heads = ranks.share(self.num_key_heads, "key heads of the delta net")
        return replace(self, num_key_heads=num_key_heads, num_heads=self.num_heads // ranks.size)

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See MixerSpec."""
        segments = tuple(self._stored_sizes())
        parts = tuple(sum(sizes) for sizes in segments)
        channels = self.sizes[:3]
        conv = (
            Parameter("conv", channels, self.conv_width)
            if self.conv_is_stored_apart
            else Parameter("conv", (sum(channels),), self.conv_width, segments=(channels,))
        )
        return {
            "delta_in": Parameter("linear", parts, hidden_size, segments=segments),
            "conv": conv,
            "log_decay": Parameter("float32_vector", (self.num_heads,)),
            "dt_bias": Parameter("float32_vector", (self.num_heads,)),
            "delta_norm": Parameter("norm", (self.value_dim,)),
            "delta_out": Parameter("linear", (hidden_size,), self.num_heads * self.value_dim),
        }

    def build(self, weights: LayerWeights) -> "GatedDeltaNet":
        """See MixerSpec."""
        return GatedDeltaNet(self, weights)

    def _stored_sizes(self) -> Iterator[tuple[int, ...]]:
        for count, end in zip(self.stored_as, accumulate(self.stored_as), strict=True):
            yield self.sizes[end - count : end]


class GatedDeltaNet:
    """The mixer."""

    def __init__(self, spec: GatedDeltaNetSpec, weights: LayerWeights) -> None:
        self._spec = spec
        self._in, self._out = weights.linear("delta_in"), weights.linear("delta_out")
        self._conv_weight, self._log_decay, self._dt_bias, self._norm_weight = (
            weights.tensors(name)["weight"] for name in ("conv", "log_decay", "dt_bias", "delta_norm")
        )

    def __call__(self, x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        spec, sizes = self._spec, self._spec.sizes
        assert batch.read_slots is not None
        assert batch.write_slots is not None
        conv_state, state = kv_cache
        mixed, gate, beta, decay = self._in(x).split_with_sizes([sum(sizes[:3]), *sizes[3:]], dim=1)
        convolved = causal_conv(
            ConvInputs(
                x=mixed,
                weight=self._conv_weight,
                bias=None,
                state=conv_state,
                read_slots=batch.read_slots,
                write_slots=batch.write_slots,
                query_start_loc=batch.query_start_loc,
                max_query_len=batch.max_query_len,
                activation="silu",
            )
        )
        query, key, value = convolved.split_with_sizes(list(sizes[:3]), dim=1)
        by_key_head = (len(x), spec.num_key_heads, spec.key_dim)
        by_head = (len(x), spec.num_heads, spec.value_dim)
        out = gated_delta_net(
            DeltaInputs(
                query=query.view(by_key_head),
                key=key.view(by_key_head),
                value=value.view(by_head),
                beta_logits=beta,
                decay_logits=decay,
                a_log=self._log_decay,
                dt_bias=self._dt_bias,
                gate=gate.view(by_head),
                norm_weight=self._norm_weight,
                eps=spec.norm_eps,
                state=state,
                read_slots=batch.read_slots,
                write_slots=batch.write_slots,
                query_start_loc=batch.query_start_loc,
                max_query_len=batch.max_query_len,
                num_decodes=batch.num_decodes,
                row_counts=batch.row_counts,
                beta_scale=spec.beta_scale,
            )
        )
        return self._out(out.flatten(1))
