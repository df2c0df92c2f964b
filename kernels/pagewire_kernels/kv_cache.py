"""The layouts of a layer's key and value cache.

NHD, on GPUs and in every reference.py: keys and values [num_blocks, block_size, num_kv_heads, head_dim].
CPU: keys [num_blocks, num_kv_heads, head_dim, block_size], values [num_blocks, num_kv_heads, block_size, head_dim],
both float32. A block's keys are transposed so that one vector register holds one dimension of neighbouring keys: scores
then accumulate without sums across a register, and both products of attention are the same small matrix product.
"""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch

KVCache = tuple[torch.Tensor, torch.Tensor]


def allocate(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Allocates one layer's cache in the device's layout, uninitialised: on a CPU, pages become resident when written.

    Raises:
        ValueError: the device is a CPU and dtype is not float32.
    """
    if device.type == "cpu" and dtype is not torch.float32:
        raise ValueError(f"the KV cache of a CPU is float32, not {dtype}")
    keys, values = _block_shapes(block_size, num_kv_heads, head_dim, device)
    return empty((num_blocks, *keys), dtype, device), empty((num_blocks, *values), dtype, device)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised memory of a cache; on a CPU in huge pages where the system has them.

    A step reads blocks from all over a cache: with pages of 4 KB nearly each of them misses the processor's table of
    pages too.
    """
    num_elements = math.prod(shape)
    if device.type != "cpu" or num_elements == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_elements * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # The kernel was built without them.
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def part_of(cache: KVCache, num_parts: int, part: int, block_size: int, num_kv_heads: int, head_dim: int) -> KVCache:
    """One of num_parts equal caches of smaller blocks that the blocks of a cache are divided into.

    Block num_parts * b of it is within block b of the cache; the other ones are those of other parts.
    """
    shapes = _block_shapes(block_size, num_kv_heads, head_dim, cache[0].device)
    size = block_size * num_kv_heads * head_dim
    num_blocks = len(cache[0]) * num_parts - (num_parts - 1)
    keys, values = (
        whole.view(-1).narrow(0, part * size, num_blocks * size).view(num_blocks, *shape)
        for whole, shape in zip(cache, shapes, strict=True)
    )
    return keys, values


def _block_shapes(
    block_size: int, num_kv_heads: int, head_dim: int, device: torch.device
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of one block's keys and of its values."""
    if device.type == "cpu":
        return (num_kv_heads, head_dim, block_size), (num_kv_heads, block_size, head_dim)
    return (block_size, num_kv_heads, head_dim), (block_size, num_kv_heads, head_dim)


def block_bytes(block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block in one layer, keys and values together."""
    return 2 * block_size * num_kv_heads * head_dim * dtype.itemsize


def to_cpu_layout(key_cache: torch.Tensor, value_cache: torch.Tensor) -> KVCache:
    """Copies an NHD cache to the CPU layout."""
    return key_cache.permute(0, 2, 3, 1).contiguous(), value_cache.permute(0, 2, 1, 3).contiguous()


def to_nhd_layout(key_cache: torch.Tensor, value_cache: torch.Tensor) -> KVCache:
    """Copies a cache in the CPU layout to NHD."""
    return key_cache.permute(0, 3, 1, 2).contiguous(), value_cache.permute(0, 2, 1, 3).contiguous()
