"""Which layers share the blocks of the pool."""

from dataclasses import replace

import pytest
import torch
from pagewire_common.cache_groups import CacheGroup
from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.cache_layout import MAX_TABLES, plan_layout
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec

ATTENTION = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=8, scale=1.0)
MLP = MlpSpec(intermediate_size=16, activation="silu", gated=True, bias=False)


def layers(*windows: int) -> list[LayerSpec]:
    return [LayerSpec(replace(ATTENTION, sliding_window=w), MLP, NormSpec("rms", 1e-6)) for w in windows]


@pytest.mark.parametrize(("windows", "group"), [((0,) * 4, CacheGroup(0)), ((64,) * 4, CacheGroup(64))])
def test_a_model_of_one_window_has_one_table_and_a_cache_for_each_layer(
    windows: tuple[int, ...], group: CacheGroup
) -> None:
    layout = plan_layout(layers(*windows), max_model_len=1000)
    assert layout.groups == (group,)
    assert layout.layer_tables == (0,) * 4
    assert layout.layer_caches == (0, 1, 2, 3)


def test_a_window_as_long_as_the_longest_sequence_is_none() -> None:
    assert plan_layout(layers(64, 64), max_model_len=64).groups == (CacheGroup(0),)
    assert plan_layout(layers(64, 0), max_model_len=64).groups == (CacheGroup(0),)


@pytest.mark.parametrize(
    ("num_full", "num_windowed", "per_block", "tables"),
    [(4, 22, 4, (1, 6)), (5, 29, 5, (1, 6)), (8, 40, 8, (1, 5)), (10, 52, 10, (1, 6)), (12, 12, 12, (1, 1))],
)
def test_gemma_3_and_gpt_oss_keep_no_more_layers_of_all_tokens_than_they_have(
    num_full: int, num_windowed: int, per_block: int, tables: tuple[int, int]
) -> None:
    layout = plan_layout(layers(*[0] * num_full, *[1024] * num_windowed), max_model_len=131072)
    assert len(layout.specs) == per_block
    assert tuple(group.num_tables for group in layout.groups) == tables


def test_layers_of_one_table_have_caches_of_their_own() -> None:
    layout = plan_layout(layers(*[64, 64, 64, 0] * 4, 64), max_model_len=1000)
    assert len(set(zip(layout.layer_tables, layout.layer_caches, strict=True))) == 17
    assert max(layout.layer_tables) + 1 == sum(group.num_tables for group in layout.groups) <= MAX_TABLES
    caches = layout.allocate(3, 4, torch.float32, torch.device("cpu"))
    assert len(caches) == 17
    assert len({id(keys) for keys, _ in caches}) == len(layout.specs)
    num_bytes = sum({id(t): t.nbytes for cache in caches for t in cache}.values())
    assert num_bytes == 3 * layout.block_bytes(4, torch.float32)


def test_layers_whose_caches_differ_in_shape_keep_all_tokens_in_one_table() -> None:
    [window] = layers(64)
    other = replace(window, mixer=replace(ATTENTION, head_dim=16))
    layout = plan_layout([window, other], max_model_len=1000)
    assert layout.groups == (CacheGroup(0),)
    assert layout.layer_caches == (0, 1)
