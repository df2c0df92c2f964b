"""Mamba-2: of each sequence its state is a matrix for each head, and the last inputs of a convolution."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pagewire_kernels.causal_conv import ConvInputs, causal_conv
from pagewire_kernels.gated_rms_norm import gated_rms_norm
from pagewire_kernels.mamba2 import Mamba2Inputs, mamba2

from pagewire_shard.layers.cache import StateSpec, StateTensor
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.ranks import Ranks

GatedNorm = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""[num_tokens, inner_size] and the gate, likewise -> the same."""


@dataclass(frozen=True, slots=True)
class Mamba2Spec:
    """out(norm(ssm(silu(conv(x, b, c)), dt) * silu(gate))); gate, x, b, c and dt are products of the hidden state.

    Source: arXiv:2405.21060, section 7.1.
    """

    num_heads: int
    head_dim: int
    num_groups: int
    """Heads of a group share b and c, and are normed together."""
    state_size: int
    conv_width: int
    """Tokens that the convolution sums over, at least 2."""
    norm_eps: float
    norm: Literal["gated", "before_gate", "none"] = "gated"
    """Whether the norm follows the gate, precedes it, or there is none."""
    bias: bool = False
    """Whether the product of the hidden state has a bias."""
    out_bias: bool = False
    """Whether the output projection has one."""
    conv_bias: bool = True
    dt_limits: tuple[float, float] = (0.0, math.inf)
    """Bounds of a step's length."""
    input_scales: tuple[float, float, float, float, float] | None = None
    """Multiply gate, x, b, c and dt; None: nothing does."""
    ranks_per_group: int = 1
    """Ranks that have heads of the same group."""

    @property
    def inner_size(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of gate, x, b, c and dt."""
        group_size = self.num_groups * self.state_size
        return self.inner_size, self.inner_size, group_size, group_size, self.num_heads

    @property
    def cache(self) -> None:
        """See MixerSpec."""
        return None

    @property
    def state(self) -> StateSpec:
        """See MixerSpec."""
        conv = StateTensor((self.conv_width - 1, sum(self.parts[1:4])))
        return StateSpec((conv, StateTensor((self.num_heads, self.head_dim, self.state_size), torch.float32)))

    @property
    def window(self) -> int:
        """See MixerSpec."""
        return 0

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See MixerSpec."""
        parameters = {
            "ssm_in": Parameter("linear", self.parts, hidden_size, self.bias),
            "conv": Parameter("conv", self.parts[1:4], self.conv_width, self.conv_bias),
            "ssm_out": Parameter("linear", (hidden_size,), self.inner_size, self.out_bias),
        }
        # The rates at which heads decay are stored as the logarithms of their magnitudes.
        vectors = ("log_decay", "skip", "dt_bias")
        parameters |= {name: Parameter("float32_vector", (self.num_heads,)) for name in vectors}
        if self.norm != "none":
            parameters["ssm_norm"] = Parameter("norm", (self.inner_size,))
        return parameters

    def for_rank(self, ranks: Ranks) -> "Mamba2Spec":
        """See Shared: each rank has some of the heads, and the groups that these are in."""
        num_groups = ranks.share_or_copy(self.num_groups, "groups of state space heads")
        return replace(
            self,
            num_heads=ranks.share(self.num_heads, "state space heads"),
            num_groups=num_groups,
            ranks_per_group=num_groups * ranks.size // self.num_groups,
        )

    def build(self, weights: LayerWeights) -> "Mamba2":
        """See MixerSpec."""
        return Mamba2(self, weights)


class AllRanksGatedNorm:
    """A gated norm of one group, whose columns several ranks share out."""

    def __init__(self, spec: Mamba2Spec, weight: torch.Tensor, collectives: Collectives) -> None:
        """weight: this rank's, [inner_size]."""
        self._eps = spec.norm_eps
        self._norm_first = spec.norm == "before_gate"
        self._group_size = len(weight) * spec.ranks_per_group
        self._weight = weight.float()
        self._all_reduce = collectives.all_reduce
        self._num_groups = collectives.ranks.size // spec.ranks_per_group
        self._group = collectives.ranks.rank // spec.ranks_per_group

    def __call__(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """[num_tokens, inner_size] each -> the same."""
        activated = F.silu(gate.float())
        wide = x.float() if self._norm_first else x.float() * activated
        squares = wide.new_zeros((len(x), self._num_groups))
        squares[:, self._group] = wide.square().sum(1)
        mean_square = self._all_reduce(squares)[:, self._group] / self._group_size
        out = wide * torch.rsqrt(mean_square + self._eps)[:, None] * self._weight
        return (out * activated if self._norm_first else out).to(x.dtype)


class Mamba2:
    """The mixer."""

    def __init__(self, spec: Mamba2Spec, weights: LayerWeights) -> None:
        self._spec = spec
        self._in, self._out = weights.linear("ssm_in"), weights.linear("ssm_out")
        conv = weights.tensors("conv")
        self._conv_weight, self._conv_bias = conv["weight"], conv.get("bias")
        log_decay, self._skip, self._dt_bias = (
            weights.tensors(name)["weight"] for name in ("log_decay", "skip", "dt_bias")
        )
        self._decay = -log_decay.exp()
        self._norm = self._gated_norm(weights)
        self._scales: torch.Tensor | None = None
        """[sum of parts], multiplies what the product yields; None: nothing does."""
        if spec.input_scales is not None:
            scales = [torch.full((size,), scale) for size, scale in zip(spec.parts, spec.input_scales, strict=True)]
            precision = weights.weights.precision
            self._scales = torch.cat(scales).to(precision.device, precision.activations)

    def _gated_norm(self, weights: LayerWeights) -> GatedNorm | None:
        spec = self._spec
        if spec.norm == "none":
            return None
        weight = weights.tensors("ssm_norm")["weight"]
        if spec.ranks_per_group > 1:
            return AllRanksGatedNorm(spec, weight, weights.weights.collectives)
        group_size, norm_first = spec.inner_size // spec.num_groups, spec.norm == "before_gate"
        return lambda x, gate: gated_rms_norm(x, gate, weight, spec.norm_eps, group_size, norm_first=norm_first)

    def __call__(self, x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        spec = self._spec
        assert batch.read_slots is not None
        assert batch.write_slots is not None
        conv_state, state = kv_cache
        projected = self._in(x)
        if self._scales is not None:
            projected.mul_(self._scales)
        sizes = spec.parts
        gate, mixed, dt = projected.split_with_sizes([sizes[0], sum(sizes[1:4]), sizes[4]], dim=1)
        convolved = causal_conv(
            ConvInputs(
                x=mixed,
                weight=self._conv_weight,
                bias=self._conv_bias,
                state=conv_state,
                read_slots=batch.read_slots,
                write_slots=batch.write_slots,
                query_start_loc=batch.query_start_loc,
                max_query_len=batch.max_query_len,
                activation="silu",
            )
        )
        heads, b, c = convolved.split_with_sizes(list(sizes[1:4]), dim=1)
        by_head = (len(x), spec.num_heads, spec.head_dim)
        by_group = (len(x), spec.num_groups, spec.state_size)
        out = mamba2(
            Mamba2Inputs(
                x=heads.view(by_head),
                dt=dt,
                b=b.view(by_group),
                c=c.view(by_group),
                decay=self._decay,
                skip=self._skip,
                dt_bias=self._dt_bias,
                state=state,
                read_slots=batch.read_slots,
                write_slots=batch.write_slots,
                query_start_loc=batch.query_start_loc,
                dt_min=spec.dt_limits[0],
                dt_max=spec.dt_limits[1],
                gate=None if spec.norm != "none" else gate.view(by_head),
                max_query_len=batch.max_query_len,
                num_decodes=batch.num_decodes,
                row_counts=batch.row_counts,
            )
        ).flatten(1)
        return self._out(out if self._norm is None else self._norm(out, gate))
