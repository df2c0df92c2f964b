"""The Triton kernels against their references: on the GPU if there is one, else in Triton's interpreter."""

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.reshape_and_cache import reference as cache_reference

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if HAS_GPU else [])]

pytest.importorskip("triton")


@starts_interpreter
def test_kernels_agree_with_their_references_in_the_interpreter():
    run_in_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_cache_writes_go_to_their_slots_and_nowhere_else(dtype):
    from pagewire_kernels.reshape_and_cache import triton as kernel

    num_tokens, num_kv_heads, head_dim, block_size = 5, 3, 20, 8
    projected = torch.randn(num_tokens, 2 * num_kv_heads * head_dim + 4).to(dtype)
    key, value = projected[:, : 2 * num_kv_heads * head_dim].unflatten(1, (-1, head_dim)).chunk(2, dim=1)
    slots = torch.tensor([17, -1, 0, 31, 8])
    expected = [torch.full((4, block_size, num_kv_heads, head_dim), float("nan"), dtype=dtype) for _ in range(2)]
    caches = [cache.to(DEVICE, copy=True) for cache in expected]
    cache_reference.reshape_and_cache(key, value, *expected, slots)
    kernel.reshape_and_cache(
        *(x.to(DEVICE) for x in (key, value)),
        *caches,
        slots.to(DEVICE),
    )
    for cache, expectation in zip(caches, expected, strict=True):
        torch.testing.assert_close(cache.cpu(), expectation, atol=0, rtol=0, equal_nan=True)
