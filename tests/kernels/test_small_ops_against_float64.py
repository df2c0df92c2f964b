"""Norms, activations, rotation and cache writes against float64, on a CPU and on a GPU."""

import float64
import pytest
import torch
from kernel_site import Site
from pagewire_kernels import kv_cache
from pagewire_kernels.activation import gelu_and_mul, silu_and_mul
from pagewire_kernels.copy_blocks import copy_blocks
from pagewire_kernels.layer_norm import layer_norm
from pagewire_kernels.reshape_and_cache import reshape_and_cache
from pagewire_kernels.rms_norm import rms_norm
from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache

EPS = 1e-5
BLOCK_SIZE = 16
ROWS = pytest.mark.parametrize(("num_tokens", "hidden"), [(1, 2048), (37, 4096), (513, 5120)])


def rows(site: Site, num_tokens: int, hidden: int) -> torch.Tensor:
    return site.random(site.size(num_tokens, min(num_tokens, 5)), site.size(hidden, hidden // 64))


@ROWS
def test_rms_norm(site: Site, num_tokens: int, hidden: int) -> None:
    x = rows(site, num_tokens, hidden)
    weight = site.random(x.shape[1])
    site.check(rms_norm(x, weight, EPS), float64.rms_norm(x, weight, EPS))


@ROWS
def test_rms_norm_with_residual(site: Site, num_tokens: int, hidden: int) -> None:
    x, residual = (rows(site, num_tokens, hidden) for _ in range(2))
    weight = site.random(x.shape[1])
    out, out_residual = rms_norm(x.clone(), weight, EPS, residual.clone())
    site.check(out, float64.rms_norm(x, weight, EPS, residual))
    site.check(out_residual, x.double() + residual.double(), "residual")


def test_rms_norm_of_heads(site: Site) -> None:
    heads, weight = site.random(19, 12, 128)[:, 2:10], site.random(128)
    site.check(rms_norm(heads, weight, 1e-6), float64.rms_norm(heads, weight, 1e-6))


@ROWS
def test_layer_norm(site: Site, num_tokens: int, hidden: int) -> None:
    x = rows(site, num_tokens, hidden)
    weight, bias = (site.random(x.shape[1]) for _ in range(2))
    site.check(layer_norm(x, weight, bias, EPS), float64.layer_norm(x, weight, bias, EPS))


@pytest.mark.parametrize(("num_tokens", "size"), [(1, 14_336), (129, 8192), (33, 768)])
def test_activations(site: Site, num_tokens: int, size: int) -> None:
    x = site.random(num_tokens, 2 * site.size(size, size // 64))
    site.check(silu_and_mul(x), float64.silu_and_mul(x), "silu")
    for form in ("none", "tanh"):
        site.check(gelu_and_mul(x, form), float64.gelu_and_mul(x, form), f"gelu, {form}")


def projected(site: Site, num_tokens: int, heads: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    """Query, key and value as slices of one projection."""
    num_heads, num_kv_heads, head_dim = heads
    parts = [num_heads, num_kv_heads, num_kv_heads]
    return site.random(num_tokens, sum(parts), head_dim).split_with_sizes(parts, 1)


def rotations(site: Site, num_positions: int, head_dim: int) -> torch.Tensor:
    """Cosines and sines of random angles: [num_positions, head_dim]."""
    angles = torch.rand(num_positions, head_dim // 2, device=site.device) * 6.28
    return torch.cat((angles.cos(), angles.sin()), -1)


def empty_caches(site: Site, num_blocks: int, num_kv_heads: int, head_dim: int) -> kv_cache.KVCache:
    caches = kv_cache.allocate(num_blocks, BLOCK_SIZE, num_kv_heads, head_dim, site.dtype, site.device)
    for cache in caches:
        cache.fill_(torch.nan)
    return caches


def slots_of(site: Site, caches: kv_cache.KVCache, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Keys and values in the slots, where these are not negative; every other slot must still hold NaN."""
    caches = caches if site.is_gpu else kv_cache.to_nhd_layout(*caches)
    flat = [cache.flatten(0, 1) for cache in caches]
    is_written = torch.zeros(len(flat[0]), dtype=torch.bool, device=site.device)
    is_written[slots[slots >= 0]] = True
    for rows in flat:
        assert rows[~is_written].isnan().all(), "a slot of no token was written"
    return tuple(rows[slots[slots >= 0]] for rows in flat)


@pytest.mark.parametrize("heads", [(32, 8, 128), (32, 8, 64), (14, 2, 64), (3, 1, 80)], ids=str)
def test_rotary_and_cache(site: Site, heads: tuple[int, int, int]) -> None:
    num_tokens, num_positions = 70, 500
    query, key, value = projected(site, num_tokens, heads)
    positions = torch.randint(0, num_positions, (num_tokens,), device=site.device)
    cos_sin = rotations(site, num_positions, heads[2])
    slots = torch.randperm(num_tokens + 26, device=site.device)[:num_tokens]
    slots[3] = -1
    expected_query, expected_key = (float64.rotate(x, positions, cos_sin) for x in (query, key))
    expected_value = value.clone()
    caches = empty_caches(site, 6, *heads[1:])
    rotary_and_cache(RotaryInputs(query, key, value, positions, cos_sin, *caches, slots))
    keys, values = slots_of(site, caches, slots)
    site.check(query, expected_query, "query")
    site.check(keys, expected_key[slots >= 0], "keys")
    assert torch.equal(values, expected_value[slots >= 0])


def test_rotary_and_cache_after_a_norm_of_each_head(site: Site) -> None:
    """As in Qwen3."""
    heads, num_tokens = (32, 4, 128), 41
    query, key, value = projected(site, num_tokens, heads)
    q_weight, k_weight = (site.random(heads[2]) for _ in range(2))
    positions = torch.arange(num_tokens, device=site.device)
    cos_sin = rotations(site, num_tokens, heads[2])
    expected_query = float64.rotate(float64.rms_norm(query, q_weight, 1e-6), positions, cos_sin)
    expected_key = float64.rotate(float64.rms_norm(key, k_weight, 1e-6), positions, cos_sin)
    caches = empty_caches(site, 3, *heads[1:])
    weights = {"q_norm_weight": q_weight, "k_norm_weight": k_weight, "eps": 1e-6}
    rotary_and_cache(RotaryInputs(query, key, value, positions, cos_sin, *caches, positions.clone(), **weights))
    site.check(query, expected_query, "query")
    site.check(slots_of(site, caches, positions)[0], expected_key, "keys")


def test_reshape_and_cache_is_exact(site: Site) -> None:
    key, value = (site.random(40, 3, 72) for _ in range(2))
    slots = torch.randperm(64, device=site.device)[:40]
    slots[[0, 7]] = -1
    caches = empty_caches(site, 4, 3, 72)
    reshape_and_cache(key, value, *caches, slots)
    keys, values = slots_of(site, caches, slots)
    assert torch.equal(keys, key[slots >= 0])
    assert torch.equal(values, value[slots >= 0])


def test_copy_blocks_is_exact(site: Site) -> None:
    layers = [(site.random(9, 16, 2, 64), site.random(9, 16, 2, 64)) for _ in range(3)]
    expected = [[cache.clone() for cache in layer] for layer in layers]
    sources, targets = (torch.tensor(ids, device=site.device) for ids in ([1, 1, 8], [0, 5, 2]))
    copy_blocks(layers, sources, targets)
    for layer, expected_layer in zip(layers, expected, strict=True):
        for cache, expected_cache in zip(layer, expected_layer, strict=True):
            expected_cache[targets] = expected_cache[sources]
            assert torch.equal(cache, expected_cache)
