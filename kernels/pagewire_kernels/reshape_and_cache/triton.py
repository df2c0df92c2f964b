"""reshape_and_cache on a GPU, on the NHD layout."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@triton.jit
def reshape_and_cache_kernel(
    key_ptr,
    value_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slot_mapping_ptr,
    stride_key_token,
    stride_value_token,
    TOKEN_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_tokens,); one program writes one token's key and value, TOKEN_SIZE elements each."""
    token = tl.program_id(0).to(tl.int64)
    release_next(PDL)
    wait_for_previous(PDL)
    slot = tl.load(slot_mapping_ptr + token)
    if slot < 0:
        return
    offsets = tl.arange(0, BLOCK)
    mask = offsets < TOKEN_SIZE
    key = tl.load(key_ptr + token * stride_key_token + offsets, mask=mask)  # [BLOCK]
    value = tl.load(value_ptr + token * stride_value_token + offsets, mask=mask)  # [BLOCK]
    tl.store(key_cache_ptr + slot * TOKEN_SIZE + offsets, key, mask=mask)
    tl.store(value_cache_ptr + slot * TOKEN_SIZE + offsets, value, mask=mask)


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """See the package."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if any(x.stride(2) != 1 or x.stride(1) != head_dim for x in (key, value)):
        raise ValueError("the heads of a token must be contiguous in key and value")
    if not key_cache.is_contiguous() or not value_cache.is_contiguous():
        raise ValueError("the caches must be contiguous")
    if num_tokens == 0:
        return
    token_size = num_kv_heads * head_dim
    reshape_and_cache_kernel[(num_tokens,)](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        key.stride(0),
        value.stride(0),
        TOKEN_SIZE=token_size,
        BLOCK=triton.next_power_of_2(token_size),
        **launch_options(key.device),
    )
