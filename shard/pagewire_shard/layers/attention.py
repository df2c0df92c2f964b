"""Multi-head attention over the paged KV cache, with or without rotary positions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pagewire_kernels.activation import sigmoid
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
from pagewire_kernels.reshape_and_cache import reshape_and_cache
from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache

from pagewire_shard.layers.cache import CacheSpec, KeyValueCacheSpec, SharedCacheSpec
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.norm import Norm, NormSpec
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.ranks import CannotShare, Ranks


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Multi-head attention; several query heads may share a key-value head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Multiplies query-key products."""
    rope: RopeSpec | None = None
    """None: heads are not rotated."""
    sliding_window: int = 0
    """A token attends to itself and the sliding_window - 1 tokens before it; 0: to all before it."""
    logit_softcap: float = 0.0
    """Scaled products become cap * tanh(product / cap); 0: they stay."""
    sinks: bool = False
    """Each query head has a learned score that takes part in its softmax and has no value."""
    qk_norm: NormSpec | None = None
    """Over each head's query and key."""
    qk_norm_after_rope: bool = False
    """The norm follows the rotation; RMS norms with shared weights alone."""
    qk_norm_scope: Literal["shared", "per_head", "all_heads"] = "shared"
    """Whether all heads share one weight of [head_dim], each has a weight of its own, or one norm is over all heads
    together."""
    cache_of: int | None = None
    """Index of an earlier layer whose keys and values are attended to, in place of own ones; None: there are own ones.
    With it, heads are rotated and their norms, if there are any, shared."""
    v_norm: NormSpec | None = None
    """Of each head's value, without a weight."""
    value_is_key: bool = False
    """Values are the keys' projections, before their norm and rotation; v_norm is given then."""
    scaled_by_position: bool = False
    """Queries are multiplied by the decoder's position_scale."""
    output_gate: bool = False
    """What each head attends to is multiplied by the sigmoid of a product of its own, of the head's size."""
    gate_is_stored_apart: bool = False
    """Checkpoints store gates as a matrix of their own, not as one with the queries."""
    qkv_bias: bool = False
    o_bias: bool = False
    qkv_clip: float = 0.0
    """Queries, keys and values are clamped to +-qkv_clip, after a norm of all heads; 0: they are not."""
    alibi_slopes: tuple[float, ...] = ()
    """One for each query head: slope * distance is subtracted from its scores; empty: nothing is."""

    @property
    def cache(self) -> CacheSpec:
        """See MixerSpec."""
        if self.cache_of is not None:
            return SharedCacheSpec(self.cache_of)
        return KeyValueCacheSpec(self.num_kv_heads, self.head_dim)

    @property
    def state(self) -> None:
        """See MixerSpec."""
        return None

    @property
    def window(self) -> int:
        """See MixerSpec."""
        return self.sliding_window

    @property
    def _num_parts(self) -> int:
        """Queries, keys and values, as far as the layer makes them itself."""
        return 1 if self.cache_of is not None else 2 if self.value_is_key else 3

    def parameters(self, hidden_size: int) -> dict[str, Parameter]:
        """See MixerSpec."""
        query_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        queries = (query_size,) * (2 if self.output_gate else 1)
        stored = tuple((size,) for size in queries) if self.gate_is_stored_apart else (queries,)
        segments = (*stored, *((kv_size,),) * (self._num_parts - 1))
        parts = tuple(sum(sizes) for sizes in segments)
        parameters = {
            "qkv": Parameter("linear", parts, hidden_size, self.qkv_bias, segments),
            "o": Parameter("linear", (hidden_size,), query_size, self.o_bias),
        }
        if self.sinks:
            parameters["sinks"] = Parameter("vector", (self.num_heads,))
        if self.qk_norm is not None and self.qk_norm_scope == "shared":
            names = ("q_norm",) if self.cache_of is not None else ("q_norm", "k_norm")
            parameters |= {name: self.qk_norm.parameter(self.head_dim) for name in names}
        elif self.qk_norm is not None and self.qk_norm_scope == "all_heads":
            parameters |= {"q_norm": self.qk_norm.parameter(query_size), "k_norm": self.qk_norm.parameter(kv_size)}
        elif self.qk_norm is not None:
            parameters["q_norm"] = Parameter("norm", (self.num_heads,), self.head_dim)
            parameters["k_norm"] = Parameter("norm", (self.num_kv_heads,), self.head_dim)
        return parameters

    def for_rank(self, ranks: Ranks) -> "AttentionSpec":
        """See Shared: each rank has some of the query heads, and the key-value heads that these attend to."""
        if self.qk_norm is not None and self.qk_norm_scope == "all_heads" and self.qk_norm.kind != "rms":
            raise CannotShare("layer norms over all attention heads together")
        num_heads = ranks.share(self.num_heads, "attention heads")
        first = ranks.rank * num_heads
        return replace(
            self,
            num_heads=num_heads,
            num_kv_heads=ranks.share_or_copy(self.num_kv_heads, "key-value heads"),
            alibi_slopes=self.alibi_slopes[first : first + num_heads],
        )

    def build(self, weights: LayerWeights) -> "Attention":
        """See MixerSpec."""
        return Attention(self, weights)


HeadNorm = Callable[[torch.Tensor], torch.Tensor]
"""[num_tokens, num_heads, head_dim] -> the same shape, contiguous."""
QkNorms = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Norms queries and keys."""


class PerHeadNorm:
    """A norm of each head, scaled by weights of the head's own: [num_heads, head_dim], without bias."""

    def __init__(self, norm: NormSpec, weight: torch.Tensor) -> None:
        self._unscaled = norm.build({"weight": torch.ones_like(weight[0])})
        self._weight = weight

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return self._unscaled(heads) * self._weight


class AllHeadsNorm:
    """A norm over all heads of a token together, with a weight of [num_heads * head_dim]."""

    def __init__(self, norm: Norm) -> None:
        self._norm = norm

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return self._norm(heads.flatten(1)).view(heads.shape)


def each(query_norm: HeadNorm, key_norm: HeadNorm) -> QkNorms:
    """Norms queries and keys each by themselves."""
    return lambda query, key: (query_norm(query), key_norm(key))


class AllRanksNorms:
    """RMS norms over all query heads and over all key heads of a token, which the ranks of a group share out.

    Where several ranks hold the same key heads, each of these counts as often, so that the mean is the same.
    """

    def __init__(self, norm: NormSpec, query: torch.Tensor, key: torch.Tensor, collectives: Collectives) -> None:
        """query, key: this rank's weights, [num_heads * head_dim]."""
        self._eps = norm.eps
        self._weights = query, key
        self._collectives = collectives

    def __call__(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = query.flatten(1).float(), key.flatten(1).float()
        squares = torch.stack([part.square().mean(1) for part in wide], dim=1)
        squares = self._collectives.all_reduce(squares) / self._collectives.ranks.size
        inverse = torch.rsqrt(squares + self._eps)
        normed = [
            ((part * inverse[:, i, None]).to(weight.dtype) * weight).to(query.dtype)
            for i, (part, weight) in enumerate(zip(wide, self._weights, strict=True))
        ]
        return normed[0].view(query.shape), normed[1].view(key.shape)


class Attention:
    """Projects to queries, keys and values, writes keys and values to the cache, attends to all of the sequence."""

    def __init__(self, spec: AttentionSpec, weights: LayerWeights) -> None:
        self._head_dim = spec.head_dim
        self._num_kv_heads = spec.num_kv_heads
        num_query_parts = 2 if spec.output_gate else 1
        self._head_counts = [spec.num_heads] * num_query_parts + [spec.num_kv_heads] * (spec._num_parts - 1)
        self._has_gate = spec.output_gate
        self._is_reader = spec.cache_of is not None
        self._scale = spec.scale
        self._scaled_by_position = spec.scaled_by_position
        self._sliding_window = spec.sliding_window
        self._logit_softcap = spec.logit_softcap
        self._sinks = weights.tensors("sinks")["weight"] if spec.sinks else None
        self._qkv_clip = spec.qkv_clip
        device = weights.weights.precision.device
        self._alibi_slopes = torch.tensor(spec.alibi_slopes, device=device) if spec.alibi_slopes else None
        self._qkv = weights.linear("qkv")
        self._o = weights.linear("o")
        self._cos_sin_cache = weights.rotary_table(spec.rope) if spec.rope is not None else None
        self._rotary_options: dict[str, Any] = {"interleaved": spec.rope is not None and spec.rope.interleaved}
        """Fields of RotaryInputs."""
        self._query_scale: torch.Tensor | None = None
        """[head_dim], multiplies rotated queries; None: nothing does."""
        self._v_norm: Norm | None = None
        if spec.v_norm is not None:
            ones = torch.ones(spec.head_dim, dtype=weights.weights.precision.activations, device=device)
            self._v_norm = spec.v_norm.build({"weight": ones})
        self._qk_norms: QkNorms | None = None
        """None: there are none, or the op that rotates the heads norms them in the same pass."""
        if spec.qk_norm is not None:
            self._set_qk_norms(spec.qk_norm, spec, weights)

    def _set_qk_norms(self, norm: NormSpec, spec: AttentionSpec, weights: LayerWeights) -> None:
        q_norm = weights.tensors("q_norm")
        k_norm = q_norm if self._is_reader else weights.tensors("k_norm")
        if spec.qk_norm_after_rope:
            self._norm_after_rope(norm, q_norm["weight"], k_norm["weight"])
        elif spec.qk_norm_scope == "shared" and norm.kind == "rms" and spec.rope is not None:
            fused = {"q_norm_weight": norm.weight(q_norm), "k_norm_weight": norm.weight(k_norm), "eps": norm.eps}
            self._rotary_options |= fused
        elif spec.qk_norm_scope == "shared":
            self._qk_norms = each(norm.build(q_norm), norm.build(k_norm))
        elif spec.qk_norm_scope == "per_head":
            self._qk_norms = each(PerHeadNorm(norm, q_norm["weight"]), PerHeadNorm(norm, k_norm["weight"]))
        elif weights.weights.collectives.ranks.is_alone:
            self._qk_norms = each(AllHeadsNorm(norm.build(q_norm)), AllHeadsNorm(norm.build(k_norm)))
        else:
            collectives = weights.weights.collectives
            self._qk_norms = AllRanksNorms(norm, norm.weight(q_norm), norm.weight(k_norm), collectives)

    def _norm_after_rope(self, norm: NormSpec, q_weight: torch.Tensor, k_weight: torch.Tensor) -> None:
        """Rotating keeps a head's length, so dividing by it can come first, in the same pass. Only the weights are
        bound to their dimensions; those of the keys are multiplied to the queries, which leaves all products equal."""
        ones = torch.ones_like(q_weight)
        self._rotary_options |= {"q_norm_weight": ones, "k_norm_weight": ones, "eps": norm.eps}
        self._query_scale = q_weight * k_weight

    def __call__(self, x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden].

        The keys and values of all tokens are written before any token attends: a row may read blocks that another row
        fills in the same step (engine/step_prefixes.py).
        """
        heads = self._qkv(x).view(x.shape[0], -1, self._head_dim)
        slots = batch.slot_mapping
        query, *own = torch.split_with_sizes(heads, self._head_counts, dim=1)
        gate = own.pop(0) if self._has_gate else None
        if self._is_reader:
            # The op that rotates queries wants keys and values too: of these nothing is written.
            key = value = query.new_zeros((len(query), self._num_kv_heads, self._head_dim))
            slots = torch.full_like(slots, -1)
        else:
            key, value = own[0], own[-1]
        if self._v_norm is not None:
            value = self._v_norm(value)
        if self._qk_norms is not None:
            query, key = self._qk_norms(query, key)
        if self._qkv_clip:
            for part in (query, key, value):
                part.clamp_(-self._qkv_clip, self._qkv_clip)
        key_cache, value_cache = kv_cache
        if self._cos_sin_cache is None:
            reshape_and_cache(key, value, key_cache, value_cache, slots)
        else:
            rotary_and_cache(
                RotaryInputs(
                    query=query,
                    key=key,
                    value=value,
                    positions=batch.positions if batch.rotary_rows is None else batch.rotary_rows,
                    cos_sin_cache=self._cos_sin_cache,
                    key_cache=key_cache,
                    value_cache=value_cache,
                    slot_mapping=slots,
                    **self._rotary_options,
                )
            )
        if self._query_scale is not None:
            query.mul_(self._query_scale)
        if self._scaled_by_position:
            assert batch.position_scale is not None, "the decoder's spec has one"
            query.mul_(batch.position_scale)
        inputs = AttentionInputs(
            query=query,
            key_cache=key_cache,
            value_cache=value_cache,
            block_tables=batch.block_tables,
            query_start_loc=batch.query_start_loc,
            seq_lens=batch.seq_lens,
            scale=self._scale,
            max_query_len=batch.max_query_len,
            max_seq_len=batch.max_seq_len,
            sliding_window=self._sliding_window,
            logit_softcap=self._logit_softcap,
            sinks=self._sinks,
            alibi_slopes=self._alibi_slopes,
            num_decodes=batch.num_decodes,
            row_counts=batch.row_counts,
            shared=batch.shared,
        )
        attended = paged_attention(inputs)
        if gate is not None:
            attended.mul_(sigmoid(gate))
        return self._o(attended.view(x.shape[0], -1))
