"""Cache layouts, writes to the cache, rotary embedding and block copies."""

import mmap
import re
from pathlib import Path

import pytest
import torch
from pagewire_kernels import kv_cache
from pagewire_kernels.copy_blocks import copy_blocks
from pagewire_kernels.reshape_and_cache import reference as cache_reference
from pagewire_kernels.reshape_and_cache import reshape_and_cache
from pagewire_kernels.rotary import apply_rotary
from pagewire_kernels.rotary import reference as rotary_reference
from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache
from pagewire_kernels.rotary_and_cache import reference as fused_reference

CPU = torch.device("cpu")


def empty_caches(num_blocks, block_size, num_kv_heads, head_dim):
    """The NHD caches and the same in the CPU layout, filled with NaN."""
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    nhd = (torch.full(shape, float("nan")), torch.full(shape, float("nan")))
    return nhd, kv_cache.to_cpu_layout(*nhd)


def heads(num_tokens, num_heads, num_kv_heads, head_dim):
    """Query, key and value as slices of one projection's output, and that output."""
    projected = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    return projected, projected.unflatten(1, (-1, head_dim)).split([num_heads, num_kv_heads, num_kv_heads], dim=1)


def angles(max_position, rotary_dim):
    phase = torch.rand(max_position, rotary_dim // 2) * 6
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6, equal_nan=True)


def test_layouts_convert_back_and_forth():
    caches = (torch.randn(3, 4, 2, 5), torch.randn(3, 4, 2, 5))
    for cache, returned in zip(caches, kv_cache.to_nhd_layout(*kv_cache.to_cpu_layout(*caches)), strict=True):
        assert torch.equal(cache, returned)


def test_allocated_caches_have_the_cpu_layout_and_the_stated_size():
    key_cache, value_cache = kv_cache.allocate(5, 16, 3, 64, torch.float32, CPU)
    assert key_cache.shape == (5, 3, 64, 16)
    assert value_cache.shape == (5, 3, 16, 64)
    assert key_cache.nbytes + value_cache.nbytes == 5 * kv_cache.block_bytes(16, 3, 64, torch.float32)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages")
def test_the_caches_of_a_cpu_ask_for_huge_pages():
    cache, _ = kv_cache.allocate(4096, 16, 2, 32, torch.float32, CPU)
    cache.fill_(1.0)
    flags = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(address, 16) for address in mapping.groups())
        elif line.startswith("VmFlags:") and begin <= cache.data_ptr() < end:
            flags = line.split()
    assert flags is not None
    assert "hg" in flags, flags


def test_half_precision_caches_are_refused_on_a_cpu():
    with pytest.raises(ValueError, match="float32"):
        kv_cache.allocate(5, 16, 3, 64, torch.float16, CPU)


@pytest.mark.parametrize("block_size", [1, 8, 16])
@pytest.mark.parametrize("head_dim", [7, 64])
def test_cache_writes_go_to_their_slots_and_nowhere_else(block_size, head_dim):
    _, (_, key, value) = heads(9, 4, 3, head_dim)
    nhd, cpu = empty_caches(20, block_size, 3, head_dim)
    slots = torch.randperm(20 * block_size)[:9]
    slots[[2, 5]] = -1
    cache_reference.reshape_and_cache(key, value, *nhd, slots)
    reshape_and_cache(key, value, *cpu, slots)
    for actual, expected in zip(kv_cache.to_nhd_layout(*cpu), nhd, strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (64, 16), (40, 20), (6, 2)])
def test_rotary_turns_the_first_dimensions_in_place(head_dim, rotary_dim, interleaved):
    projected, (query, key, _) = heads(11, 4, 2, head_dim)
    expected = projected.clone()
    expected_heads = expected.unflatten(1, (-1, head_dim)).split([4, 2, 2], dim=1)
    positions, cache = torch.randint(0, 50, (11,)), angles(50, rotary_dim)
    rotary_reference.apply_rotary(*expected_heads[:2], positions, cache, interleaved)
    apply_rotary(query, key, positions, cache, interleaved)
    assert_same(projected, expected)


def test_neox_rotary_is_that_of_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    _, (query, key, _) = heads(5, 4, 2, 32)
    cache = angles(5, 32)
    cos, sin = (torch.cat([half, half], dim=1)[None] for half in cache.chunk(2, dim=1))
    expected = apply_rotary_pos_emb(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin)
    rotary_reference.apply_rotary(query, key, torch.arange(5), cache)
    assert_same(query, expected[0][0].transpose(0, 1))
    assert_same(key, expected[1][0].transpose(0, 1))


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_and_cache_is_the_composition(interleaved, has_norm):
    projected, tensors = heads(600, 4, 2, 24)
    expected = projected.clone()
    expected_heads = expected.unflatten(1, (-1, 24)).split([4, 2, 2], dim=1)
    positions, cache = torch.randint(0, 50, (600,)), angles(50, 24)
    norms = {"q_norm_weight": torch.randn(24), "k_norm_weight": torch.randn(24), "eps": 1e-5} if has_norm else {}
    nhd, cpu = empty_caches(100, 8, 2, 24)
    slots = torch.randperm(800)[:600]
    slots[7] = -1
    fused_reference.rotary_and_cache(RotaryInputs(*expected_heads, positions, cache, *nhd, slots, interleaved, **norms))
    rotary_and_cache(RotaryInputs(*tensors, positions, cache, *cpu, slots, interleaved, **norms))
    assert_same(tensors[0], expected_heads[0])
    for actual, wanted in zip(kv_cache.to_nhd_layout(*cpu), nhd, strict=True):
        assert_same(actual, wanted)


def test_one_norm_weight_without_the_other_is_refused():
    _, tensors = heads(1, 2, 2, 8)
    caches = empty_caches(1, 1, 2, 8)[1]
    with pytest.raises(ValueError, match="come together"):
        rotary_and_cache(
            RotaryInputs(
                *tensors, torch.tensor([0]), angles(1, 8), *caches, torch.tensor([0]), q_norm_weight=torch.ones(8)
            )
        )


def test_heads_that_are_not_contiguous_are_refused():
    query = torch.randn(3, 4, 16)[..., ::2]
    with pytest.raises(ValueError, match="contiguous"):
        apply_rotary(query, query, torch.zeros(3, dtype=torch.int64), angles(1, 8))


def test_blocks_are_copied_in_all_layers():
    layers = [tuple(torch.randn(6, 2, 3, 4) for _ in range(2)) for _ in range(2)]
    before = [tuple(cache.clone() for cache in layer) for layer in layers]
    copy_blocks(layers, torch.tensor([0, 3, 0]), torch.tensor([1, 2, 5]))
    for layer, old_layer in zip(layers, before, strict=True):
        for cache, old in zip(layer, old_layer, strict=True):
            assert torch.equal(cache, old[[0, 0, 3, 3, 4, 0]])


def test_positions_that_are_not_contiguous_are_refused():
    query, positions = torch.randn(3, 4, 16), torch.zeros(3, 8, dtype=torch.int64)[:, 1]
    with pytest.raises(ValueError, match="positions must be int64 and contiguous"):
        apply_rotary(query, query.clone(), positions, angles(1, 16))
