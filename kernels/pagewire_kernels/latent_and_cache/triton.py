"""latent_and_cache on a GPU: one launch for the rotation of all heads, and norm, rotation and write of the latent."""

import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.latent_and_cache.inputs import LatentRows
from pagewire_kernels.rotary_and_cache.triton import load_pairs, scale_normed, store_pairs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_HEADS = 16
"""Query heads that a program turns."""


@triton.jit
def _turn(
    source_ptr,
    source_offsets,
    target_ptr,
    target_offsets,
    is_head,
    angles_ptr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Rotates the heads that start at source_offsets, [HEADS, 1], and writes them to target_offsets."""
    first, second = load_pairs(source_ptr, source_offsets, is_head, HALF, HALF_BLOCK, INTERLEAVED)
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    cos = tl.load(angles_ptr + pair, mask=pair < HALF, other=0.0)  # [1, HALF_BLOCK]
    sin = tl.load(angles_ptr + HALF + pair, mask=pair < HALF, other=0.0)
    turned_first, turned_second = first * cos - second * sin, second * cos + first * sin
    store_pairs(target_ptr, target_offsets, is_head, turned_first, turned_second, HALF, HALF_BLOCK, INTERLEAVED)


@triton.jit
def latent_and_cache_kernel(
    query_ptr,
    latent_ptr,
    weight_ptr,
    positions_ptr,
    cos_sin_ptr,
    cache_ptr,
    slot_mapping_ptr,
    stride_query_token,
    stride_latent_token,
    eps,
    NUM_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    LATENT_DIM: tl.constexpr,
    BLOCK_L: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_tokens, cdiv(NUM_HEADS, HEADS) + 1); one program turns HEADS query heads of one token in place, or,
    the last one, writes the token's normed latent and turned key to its slot. HALF pairs of each head turn."""
    ROPE_DIM: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    release_next(PDL)
    wait_for_previous(PDL)
    angles_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * ROPE_DIM
    if tile < tl.num_programs(1) - 1:
        head = (tile * HEADS + tl.arange(0, HEADS))[:, None]  # [HEADS, 1]
        offsets = token * stride_query_token + head * ROPE_DIM
        _turn(query_ptr, offsets, query_ptr, offsets, head < NUM_HEADS, angles_ptr, HALF, HALF_BLOCK, INTERLEAVED)
    else:
        slot = tl.load(slot_mapping_ptr + token)
        if slot >= 0:
            dims = tl.arange(0, BLOCK_L)
            mask = dims < LATENT_DIM
            row_ptr = latent_ptr + token * stride_latent_token
            slot_ptr = cache_ptr + slot * (LATENT_DIM + ROPE_DIM)
            latent = tl.load(row_ptr + dims, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_L]
            weight = tl.load(weight_ptr + dims, mask=mask, other=0.0)
            reciprocal_rms = tl.rsqrt(tl.sum(latent * latent) / LATENT_DIM + eps)
            normed = scale_normed(latent, reciprocal_rms, weight, cache_ptr.dtype.element_ty)
            tl.store(slot_ptr + dims, normed.to(cache_ptr.dtype.element_ty), mask=mask)
            key = tl.arange(0, 1)[:, None] + LATENT_DIM  # [1, 1]
            is_key = key >= 0
            _turn(row_ptr, key, slot_ptr, key, is_key, angles_ptr, HALF, HALF_BLOCK, INTERLEAVED)


def latent_and_cache(rows: LatentRows) -> None:
    """See the package."""
    num_tokens, num_heads, rope_dim = rows.query_rope.shape
    if rows.query_rope.stride(2) != 1 or rows.query_rope.stride(1) != rope_dim or rows.latent.stride(1) != 1:
        raise ValueError("each token's heads must be contiguous in query_rope, and the rows of latent")
    if not rows.cache.is_contiguous() or not rows.cos_sin_cache.is_contiguous():
        raise ValueError("the cache and the angles must be contiguous")
    if num_tokens == 0:
        return
    latent_dim = rows.norm_weight.shape[0]
    latent_and_cache_kernel[(num_tokens, triton.cdiv(num_heads, _HEADS) + 1)](
        rows.query_rope,
        rows.latent,
        rows.norm_weight,
        rows.positions,
        rows.cos_sin_cache,
        rows.cache,
        rows.slot_mapping,
        rows.query_rope.stride(0),
        rows.latent.stride(0),
        rows.eps,
        **constants(num_heads, latent_dim, rope_dim, rows.interleaved),
        **launch_options(rows.cache.device),
        num_warps=4,
    )


def constants(num_heads: int, latent_dim: int, rope_dim: int, interleaved: bool) -> dict[str, int | bool]:
    """Returns the kernel's constants that depend on shapes."""
    return {
        "NUM_HEADS": num_heads,
        "HEADS": min(_HEADS, triton.next_power_of_2(num_heads)),
        "LATENT_DIM": latent_dim,
        "BLOCK_L": triton.next_power_of_2(latent_dim),
        "HALF": rope_dim // 2,
        "HALF_BLOCK": triton.next_power_of_2(rope_dim // 2),
        "INTERLEAVED": interleaved,
    }
