"""One layer of the decoder, in the three ways families wire norms, attention, MLP and residual.

A block takes what the block before added to the residual stream and the stream itself, apart: the sum is taken in the
next norm, where it costs no pass over memory of its own.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from pagewire_shard.layers.attention import Attention
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.layers.norm import Norm

Stream = tuple[torch.Tensor, torch.Tensor | None]
"""(x, residual), both [num_tokens, hidden]; their sum is the residual stream. No residual: x is all of it."""


FeedForward = Callable[[torch.Tensor], torch.Tensor]
"""[num_tokens, hidden] -> [num_tokens, hidden]: a dense block, or a mixture of experts."""


class Block(Protocol):
    """One layer."""

    def __call__(self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache) -> Stream: ...


def normalise(norm: Norm, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    """norm(x + residual), and the sum itself."""
    x, residual = stream
    return (norm(x), x) if residual is None else norm.add(x, residual)


class PreNormBlock:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: FeedForward) -> None:
        self._attention_norm = attention_norm
        self._attention = attention
        self._mlp_norm = mlp_norm
        self._mlp = mlp

    def __call__(self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache) -> Stream:
        x, residual = normalise(self._attention_norm, stream)
        x, residual = self._mlp_norm.add(self._attention(x, batch, kv_cache), residual)
        return self._mlp(x), residual


class PostNormBlock:
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: FeedForward) -> None:
        self._attention_norm = attention_norm
        self._attention = attention
        self._mlp_norm = mlp_norm
        self._mlp = mlp

    def __call__(self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache) -> Stream:
        x, _ = stream
        x, _ = self._attention_norm.add(self._attention(x, batch, kv_cache), x)
        x, _ = self._mlp_norm.add(self._mlp(x), x)
        return x, None


class ParallelBlock:
    """x + attention(norm(x)) + mlp(norm(x)), with one norm."""

    def __init__(self, norm: Norm, attention: Attention, mlp: FeedForward) -> None:
        self._norm = norm
        self._attention = attention
        self._mlp = mlp

    def __call__(self, stream: Stream, batch: ForwardBatch, kv_cache: KVCache) -> Stream:
        x, residual = normalise(self._norm, stream)
        return self._attention(x, batch, kv_cache) + self._mlp(x), residual
