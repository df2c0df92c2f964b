"""Orders in which checkpoints store the rows of one matrix for queries, keys and values."""

from typing import cast

import torch

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec


def head_by_head(layer: LayerSpec) -> torch.Tensor:
    """For each row of qkv the stored one, where a checkpoint has KV head after KV head, each with its query heads, its
    key and its value."""
    attention = cast(AttentionSpec, layer.mixer)
    group_size = attention.num_heads // attention.num_kv_heads
    return _parts_first(attention, attention.num_kv_heads, (group_size, 1, 1), (0, 1, 2))


def in_four_slices(layer: LayerSpec) -> torch.Tensor:
    """The same for CodeGen, which stores a fourth of the queries, of the values and of the keys, and so on."""
    attention = cast(AttentionSpec, layer.mixer)
    num_heads = attention.num_heads // 4
    return _parts_first(attention, 4, (num_heads, num_heads, num_heads), (0, 2, 1))


def _parts_first(
    attention: AttentionSpec, num_slices: int, heads: tuple[int, int, int], places: tuple[int, int, int]
) -> torch.Tensor:
    """heads: in a slice, those of each stored part; places: where queries, keys and values are among the parts."""
    rows = torch.arange(num_slices * sum(heads) * attention.head_dim).view(num_slices, sum(heads), attention.head_dim)
    parts = torch.split_with_sizes(rows, heads, dim=1)
    return torch.cat([parts[place].flatten() for place in places])
