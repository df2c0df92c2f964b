"""Multi-head latent attention (MLA): a cache of one latent and one rotated key a token, which all heads share."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from pagewire_kernels.latent_and_cache import LatentRows, latent_and_cache
from pagewire_kernels.latent_attention import LatentInputs, latent_attention

from pagewire_shard.layers.cache import CacheSpec, LatentCacheSpec
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.layers.weights import LayerWeights
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class LatentAttentionSpec:
    """Multi-head latent attention (arXiv:2405.04434, section 2.1).

    A head's query and key have a part of nope_dim that is not rotated and one of rope_dim that is; the rotated part of
    the key is the same for all heads. Unrotated keys and values are products of the token's latent.
    """

    num_heads: int
    latent_dim: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    """Multiplies query-key products."""
    rope: RopeSpec
    norm: NormSpec
    """Of latents, and of the queries' own latents; RMS without bias."""
    query_latent_dim: int = 0
    """Queries are a product of a latent of their own of this size; 0: of the hidden state."""
    scaled_by_position: bool = False
    """Queries are multiplied by the decoder's position_scale."""
    bias: bool = False
    """Whether the projections to the latents and the output projection have biases."""

    @property
    def cache(self) -> CacheSpec:
        """See MixerSpec."""
        return LatentCacheSpec(self.latent_dim + self.rope_dim)

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
        query_size = self.num_heads * (self.nope_dim + self.rope_dim)
        parts = (self.query_latent_dim or query_size, self.latent_dim + self.rope_dim)
        # Rows of all heads' unrotated parts come before those of all rotated parts.
        by_kind = (self.num_heads * self.nope_dim, self.num_heads * self.rope_dim)
        segments = () if self.query_latent_dim else (by_kind, (parts[1],))
        parameters = {
            "query_and_latent": Parameter("linear", parts, hidden_size, self.bias, segments),
            "latent_norm": self.norm.parameter(self.latent_dim),
            "head_matrices": Parameter("heads", (self.num_heads * (self.nope_dim + self.value_dim),), self.latent_dim),
            "o": Parameter("linear", (hidden_size,), self.num_heads * self.value_dim, self.bias),
        }
        if self.query_latent_dim:
            parameters["query_norm"] = self.norm.parameter(self.query_latent_dim)
            parameters["query"] = Parameter("linear", (query_size,), self.query_latent_dim, segments=(by_kind,))
        return parameters

    def for_rank(self, ranks: Ranks) -> "LatentAttentionSpec":
        """See Shared: each rank has some of the heads, and all of the latents and their cache."""
        return replace(self, num_heads=ranks.share(self.num_heads, "attention heads"))

    def build(self, weights: LayerWeights) -> "LatentAttention":
        """See MixerSpec."""
        return LatentAttention(self, weights)


HeadProducts = Callable[[torch.Tensor], torch.Tensor]
"""[num_tokens, num_heads, in_features] -> [num_tokens, num_heads, out_features]: each head by a matrix of its own."""


class BatchedHeads:
    """One product for all heads: on a GPU."""

    def __init__(self, matrices: torch.Tensor) -> None:
        """matrices: [num_heads, in_features, out_features]."""
        self._matrices = matrices

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return torch.bmm(heads.transpose(0, 1), self._matrices).transpose(0, 1)


class SeparateHeads:
    """A Linear for each head: on a CPU, where packed products are faster and a row's bits do not depend on others."""

    def __init__(self, weights: LayerWeights, name: str, matrices: torch.Tensor) -> None:
        """matrices: as BatchedHeads has them."""
        self._linears = weights.own_linears(name, [matrix.t().contiguous() for matrix in matrices])
        self._out_features = matrices.shape[2]

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        out = heads.new_empty((*heads.shape[:2], self._out_features))
        for head, linear in enumerate(self._linears):
            out[:, head] = linear(heads[:, head])
        return out


class LatentAttention:
    """Projects to queries and a latent, writes that to the cache, attends to all of the sequence.

    The heads' key matrices are absorbed by the queries and their value matrices are applied to the weighted sums, so
    that the cache is read as it is.
    """

    def __init__(self, spec: LatentAttentionSpec, weights: LayerWeights) -> None:
        self._spec = spec
        self._cos_sin_cache = weights.rotary_table(spec.rope)
        self._query_and_latent = weights.linear("query_and_latent")
        self._query = None
        if spec.query_latent_dim:
            self._query_norm = spec.norm.build(weights.tensors("query_norm"))
            self._query = weights.linear("query")
        self._latent_norm_weight = weights.tensors("latent_norm")["weight"]
        self._o = weights.linear("o")
        # [num_heads, nope_dim + value_dim, latent_dim]
        matrices = weights.tensors("head_matrices")["weight"].view(spec.num_heads, -1, spec.latent_dim)
        keys, values = torch.split_with_sizes(matrices, [spec.nope_dim, spec.value_dim], dim=1)
        self._absorb_keys: HeadProducts
        self._apply_values: HeadProducts
        if weights.weights.precision.device.type == "cpu":
            self._absorb_keys = SeparateHeads(weights, "head_keys", keys)
            self._apply_values = SeparateHeads(weights, "head_values", values.transpose(1, 2))
            weights.drop("head_matrices")
        else:
            self._absorb_keys, self._apply_values = BatchedHeads(keys), BatchedHeads(values.transpose(1, 2))

    def __call__(self, x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden].

        The latents of all tokens are written before any token attends, as Attention does it with keys and values.
        """
        spec = self._spec
        latent_size = spec.latent_dim + spec.rope_dim
        projected = self._query_and_latent(x)
        query, latent = torch.split_with_sizes(projected, [projected.shape[1] - latent_size, latent_size], dim=1)
        if self._query is not None:
            query = self._query(self._query_norm(query))
        if spec.scaled_by_position:
            assert batch.position_scale is not None, "the decoder's spec has one"
            query = query * batch.position_scale.flatten(1)
        sizes = [spec.num_heads * spec.nope_dim, spec.num_heads * spec.rope_dim]
        parts = torch.split_with_sizes(query, sizes, dim=1)
        query_nope, query_rope = (part.view(x.shape[0], spec.num_heads, -1) for part in parts)
        (cache,) = kv_cache
        latent_and_cache(
            LatentRows(
                query_rope=query_rope,
                latent=latent,
                norm_weight=self._latent_norm_weight,
                eps=spec.norm.eps,
                positions=batch.positions if batch.rotary_rows is None else batch.rotary_rows,
                cos_sin_cache=self._cos_sin_cache,
                cache=cache,
                slot_mapping=batch.slot_mapping,
                interleaved=spec.rope.interleaved,
            )
        )
        sums = latent_attention(
            LatentInputs(
                query_latent=self._absorb_keys(query_nope),
                query_rope=query_rope,
                cache=cache,
                block_tables=batch.block_tables,
                query_start_loc=batch.query_start_loc,
                seq_lens=batch.seq_lens,
                scale=spec.scale,
                max_query_len=batch.max_query_len,
                max_seq_len=batch.max_seq_len,
                num_decodes=batch.num_decodes,
                row_counts=batch.row_counts,
            )
        )
        return self._o(self._apply_values(sums).flatten(1))
