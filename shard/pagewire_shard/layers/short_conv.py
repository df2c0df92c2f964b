"""A gated short convolution (LFM2): of each sequence its state is the convolution's last inputs."""

from dataclasses import dataclass, replace

import torch
from pagewire_kernels.causal_conv import ConvInputs, causal_conv

from pagewire_shard.layers.cache import StateSpec, StateTensor
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class ShortConvSpec:
    """out(c * conv(b * x)), where b, c and x are products of the hidden state.

    Source: LFM2, arXiv:2511.23404, section 2.
    """

    channels: int
    width: int
    """Tokens that the convolution sums over, at least 2."""
    bias: bool = False
    """Of the products and of the convolution."""

    @property
    def cache(self) -> None:
        """See MixerSpec."""
        return None

    @property
    def state(self) -> StateSpec:
        """See MixerSpec."""
        return StateSpec((StateTensor((self.width - 1, self.channels)),))

    @property
    def window(self) -> int:
        """See MixerSpec."""
        return 0

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See MixerSpec."""
        return {
            "conv_in": Parameter(
                "linear", (3 * self.channels,), hidden_size, self.bias, segments=((self.channels,) * 3,)
            ),
            "conv": Parameter("conv", (self.channels,), self.width, self.bias),
            "conv_out": Parameter("linear", (hidden_size,), self.channels, self.bias),
        }

    def for_rank(self, ranks: Ranks) -> "ShortConvSpec":
        """See Shared: each rank has some of the channels."""
        return replace(self, channels=ranks.share(self.channels, "channels of the convolution"))

    def build(self, weights: LayerWeights) -> "ShortConv":
        """See MixerSpec."""
        return ShortConv(weights)


class ShortConv:
    """The mixer."""

    def __init__(self, weights: LayerWeights) -> None:
        self._in, self._out = weights.linear("conv_in"), weights.linear("conv_out")
        conv = weights.tensors("conv")
        self._weight, self._bias = conv["weight"], conv.get("bias")

    def __call__(self, x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        b, c, inner = self._in(x).chunk(3, dim=1)
        assert batch.read_slots is not None
        assert batch.write_slots is not None
        (state,) = kv_cache
        convolved = causal_conv(
            ConvInputs(
                x=b * inner,
                weight=self._weight,
                bias=self._bias,
                state=state,
                read_slots=batch.read_slots,
                write_slots=batch.write_slots,
                query_start_loc=batch.query_start_loc,
                max_query_len=batch.max_query_len,
            )
        )
        return self._out(convolved.mul_(c))
