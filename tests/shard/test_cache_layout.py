"""Which layers share the blocks of the pool."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from pagewire_common.cache_groups import CacheGroup
from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.cache import StateSpec, StateTensor
from pagewire_shard.layers.cache_layout import MAX_TABLES, CacheLayout, LayerCache, plan_layout
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
    assert layout.layer_caches == tuple(LayerCache(place) for place in range(4))


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


def shaped(window: int, num_kv_heads: int, head_dim: int, cache_of: int | None = None) -> LayerSpec:
    sizes = {"num_heads": num_kv_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    mixer = replace(ATTENTION, sliding_window=window, cache_of=cache_of, **sizes)
    return LayerSpec(mixer, MLP, NormSpec("rms", 1e-6))


GEMMA4_E4B = [shaped(512, 2, 256) if (i + 1) % 6 else shaped(0, 2, 512) for i in range(24)] + [
    shaped(512, 2, 256, cache_of=22) if (i + 1) % 6 else shaped(0, 2, 512, cache_of=23) for i in range(24, 42)
]
GEMMA4_31B = [shaped(1024, 16, 256) if (i + 1) % 6 else shaped(0, 4, 512) for i in range(60)]


@pytest.mark.parametrize(
    ("shapes", "num_places", "tables", "parts"),
    [(GEMMA4_E4B, 4, (1, 3), (1, 2)), (GEMMA4_31B, 5, (1, 10), (2, 1))],
    ids=["E4B", "31B"],
)
def test_gemma_4_keeps_all_tokens_in_its_larger_heads_alone(
    shapes: list[LayerSpec], num_places: int, tables: tuple[int, int], parts: tuple[int, int]
) -> None:
    layout = plan_layout(shapes, max_model_len=131072)
    assert len(layout.specs) == num_places
    assert tuple(group.num_tables for group in layout.groups) == tables
    assert layout.table_parts == tuple(p for p, num in zip(parts, tables, strict=True) for _ in range(num))


@pytest.mark.parametrize(("window_heads", "full_heads"), [(1, 2), (4, 2), (2, 2)])
def test_caches_of_several_shapes_share_the_blocks_of_the_pool(window_heads: int, full_heads: int) -> None:
    """What each layer writes to a block of its table is where no other layer writes to another block."""
    num_blocks, block_size, device = 5, 4, torch.device("cpu")
    full, window = shaped(0, full_heads, 16), shaped(64, window_heads, 8)
    layout = plan_layout([window, window, full, window, window, full, window], max_model_len=100_000)
    places = layout.allocate_places(num_blocks, block_size, torch.float32, device)
    caches = layout.layers_in(places, block_size, torch.float32, device)
    assert sum(t.nbytes for place in places for t in place) == num_blocks * layout.block_bytes(
        block_size, torch.float32
    )
    for place in places:
        for tensor in place:
            tensor.zero_()
    # Each table has a block of its own.
    for layer, (cache, table) in enumerate(zip(caches, layout.layer_tables, strict=True)):
        for tensor in cache:
            assert tensor[layout.table_parts[table] * table].shape.numel() == layers_size(layout, layer, block_size)
            tensor[layout.table_parts[table] * table] = layer + 1
    for layer, (cache, table) in enumerate(zip(caches, layout.layer_tables, strict=True)):
        assert all((tensor[layout.table_parts[table] * table] == layer + 1).all() for tensor in cache)
    # A block of the pool is one row of every place, which is what a copy of it copies.
    for table in set(layout.layer_tables):
        for place in places:
            for tensor in place:
                found = set(tensor[table].flatten().tolist()) - {0.0}
                assert found <= {layer + 1 for layer, each in enumerate(layout.layer_tables) if each == table}


def layers_size(layout: CacheLayout, layer: int, block_size: int) -> int:
    spec = layout.layer_specs[layer]
    assert spec is not None
    return spec.block_bytes(block_size, torch.float32) // 8


def test_caches_that_do_not_divide_each_other_keep_all_tokens_in_one_table() -> None:
    layout = plan_layout([shaped(64, 2, 8), shaped(0, 3, 8)], max_model_len=1000)
    assert layout.groups == (CacheGroup(0),)
    assert layout.layer_caches == (LayerCache(0), LayerCache(1))


@pytest.mark.parametrize(
    ("num_full", "num_windowed", "num_stages"), [(10, 52, 2), (4, 22, 2), (4, 22, 3), (12, 12, 4), (1, 7, 4)]
)
def test_stages_have_the_same_tables_and_places_for_their_own_layers(
    num_full: int, num_windowed: int, num_stages: int
) -> None:
    """Full layers are spread evenly, as in Gemma 3."""
    count = num_full + num_windowed
    full = {round((i + 1) * count / num_full) - 1 for i in range(num_full)}
    all_layers = layers(*(0 if i in full else 1024 for i in range(count)))
    whole = plan_layout(all_layers, max_model_len=131072)
    bounds = [count * stage // num_stages for stage in range(num_stages + 1)]
    num_places = 0
    for first, end in pairwise(bounds):
        stage = plan_layout(all_layers, 131072, range(first, end))
        assert stage.groups == whole.groups
        assert stage.table_parts == whole.table_parts
        assert len(set(zip(stage.layer_tables, stage.layer_caches, strict=True))) == end - first
        tables = zip(stage.layer_tables, all_layers[first:end], strict=True)
        of_full = {table for table, layer in tables if not layer.mixer.window}
        assert of_full <= set(range(whole.groups[0].num_tables))
        num_places += len(stage.specs)
    assert num_places <= len(whole.specs) + 2 * (num_stages - 1)


def test_a_stage_without_attention_has_tables_of_blocks_of_no_bytes() -> None:
    state = StateSpec((StateTensor((2,)),))
    mamba = replace(layers(0)[0], mixer=StubMixer(state))
    layout = plan_layout([mamba, mamba, *layers(0, 0)], 1000, range(2))
    assert layout.groups == (CacheGroup(0),)
    assert layout.block_bytes(16, torch.float32) == 0
    assert layout.state_bytes(torch.float32) == 2 * 2 * 4


@dataclass(frozen=True)
class StubMixer:
    """A mixer with state alone."""

    state: StateSpec
    cache: None = None
    window: int = 0
