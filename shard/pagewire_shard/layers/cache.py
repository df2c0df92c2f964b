"""What the layers' caches hold: the size of the block pool and the caches themselves follow from it."""

from dataclasses import dataclass
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
        return (torch.empty((num_blocks, block_size, self.width), dtype=dtype, device=device),)


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
