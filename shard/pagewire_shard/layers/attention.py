"""Multi-head attention over the paged KV cache, with or without rotary positions."""

from typing import Any

import torch
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
from pagewire_kernels.reshape_and_cache import reshape_and_cache
from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache

from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.norm import Norm, RmsNorm
from pagewire_shard.layers.spec import DecoderSpec, LayerSpec


class Attention:
    """Projects to queries, keys and values, writes keys and values to the cache, attends to all of the sequence."""

    def __init__(
        self,
        spec: DecoderSpec,
        layer: LayerSpec,
        qkv: Linear,
        o: Linear,
        cos_sin_cache: torch.Tensor | None,
        qk_norms: tuple[Norm, Norm] | None,
    ) -> None:
        self._head_dim = spec.head_dim
        self._head_counts = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        self._scale = layer.attention_scale
        self._sliding_window = layer.sliding_window
        self._qkv = qkv
        self._o = o
        self._cos_sin_cache = cos_sin_cache
        # Fields of RotaryInputs: the op norms each head in the pass that rotates it.
        self._norm_options: dict[str, Any] = {}
        if qk_norms is not None:
            query_norm, key_norm = qk_norms
            assert isinstance(query_norm, RmsNorm), "heads are normed by their mean square"
            assert isinstance(key_norm, RmsNorm), "heads are normed by their mean square"
            assert cos_sin_cache is not None, "heads are normed where they are rotated"
            weights = {"q_norm_weight": query_norm.weight, "k_norm_weight": key_norm.weight}
            self._norm_options = {**weights, "eps": query_norm.eps}

    def __call__(self, x: torch.Tensor, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        heads = self._qkv(x).view(x.shape[0], -1, self._head_dim)
        query, key, value = torch.split_with_sizes(heads, self._head_counts, dim=1)
        key_cache, value_cache = kv_cache
        if self._cos_sin_cache is None:
            reshape_and_cache(key, value, key_cache, value_cache, batch.slot_mapping)
        else:
            rotary_and_cache(
                RotaryInputs(
                    query=query,
                    key=key,
                    value=value,
                    positions=batch.positions,
                    cos_sin_cache=self._cos_sin_cache,
                    key_cache=key_cache,
                    value_cache=value_cache,
                    slot_mapping=batch.slot_mapping,
                    **self._norm_options,
                )
            )
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
            num_decodes=batch.num_decodes,
        )
        return self._o(paged_attention(inputs).view(x.shape[0], -1))
