"""What the layers' caches hold: the size of the block pool and of the state pool, and the caches themselves, follow
from it.

A layer may keep something of every token, in blocks (CacheSpec), and something of fixed size of every sequence, in a
state slot (StateSpec). It is handed the tensors of both: those of its blocks, then those of its state.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from pagewire_kernels import kv_cache

from pagewire_shard.layers.forward_batch import KVCache


class CacheSpec(Protocol):
    """One layer's cache, which is made of blocks of tokens."""

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block of block_size tokens."""

    def allocate(self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """The cache in the layout of the device's kernels, uninitialised."""


@dataclass(frozen=True, slots=True)
class KeyValueCacheSpec:
    """A key and a value of every token, for each key-value head."""

    num_kv_heads: int
    head_dim: int

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """See CacheSpec."""
        return kv_cache.block_bytes(block_size, self.num_kv_heads, self.head_dim, dtype)

    def allocate(self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """See CacheSpec."""
        return kv_cache.allocate(num_blocks, block_size, self.num_kv_heads, self.head_dim, dtype, device)

    def part_of(self, cache: KVCache, num_parts: int, part: int, block_size: int) -> KVCache:
        """Such a cache in a part of each block of another one; see kv_cache.part_of."""
        keys, values = cache
        return kv_cache.part_of((keys, values), num_parts, part, block_size, self.num_kv_heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class LatentCacheSpec:
    """One vector for each token, which all heads share and read both as key and as value: one tensor,
    [num_blocks, block_size, width], on every device."""

    width: int

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """See CacheSpec."""
        return block_size * self.width * dtype.itemsize

    def allocate(self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """See CacheSpec."""
        return (kv_cache.empty((num_blocks, block_size, self.width), dtype, device),)


@dataclass(frozen=True, slots=True)
class SharedCacheSpec:
    """The cache of an earlier layer, which this layer reads and does not write."""

    layer: int
    """Index of that layer, which has a cache of its own."""

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """See CacheSpec: the other layer counts them."""
        return 0

    def allocate(self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """See CacheSpec; there is nothing to allocate."""
        raise AssertionError(f"the cache is that of layer {self.layer}")


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A part of what a layer with recurrent state keeps of a sequence."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    """None: that of the activations."""


@dataclass(frozen=True, slots=True)
class StateSpec:
    """What a layer with recurrent state keeps of each sequence, whatever its length."""

    tensors: tuple[StateTensor, ...]
    """In the order in which the layer is handed them, each as [num_slots, *shape], contiguous."""

    def slot_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one sequence's state; dtype: of the activations."""
        return sum(prod(tensor.shape) * (tensor.dtype or dtype).itemsize for tensor in self.tensors)

    def allocate(self, num_slots: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """The tensors of num_slots states, uninitialised."""
        return tuple(
            torch.empty((num_slots, *tensor.shape), dtype=tensor.dtype or dtype, device=device)
            for tensor in self.tensors
        )
