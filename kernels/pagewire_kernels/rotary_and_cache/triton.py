"""rotary_and_cache on a GPU, on the NHD layout: (norm of each head,) rotation and cache write in one pass."""

from dataclasses import dataclass
from functools import cache

import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.rotary_and_cache.inputs import RotaryInputs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_MAX_ELEMENTS = 4096
"""Elements of a program's heads: 8 KB of bfloat16, four 16-byte loads a thread with 4 warps."""
_ELEMENTS_PER_WARP = 1024


@triton.jit
def load_pairs(ptr, offsets, is_head, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Loads the two members of each pair of every head, [HEADS, HALF_BLOCK] float32; zero beyond HALF."""
    if INTERLEAVED:
        dim = tl.arange(0, 2 * HALF_BLOCK)[None, :]
        pairs = tl.load(ptr + offsets + dim, mask=is_head & (dim < 2 * HALF), other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(pairs, (offsets.shape[0], HALF_BLOCK, 2)))
    else:
        dim = tl.arange(0, HALF_BLOCK)[None, :]
        mask = is_head & (dim < HALF)
        first = tl.load(ptr + offsets + dim, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(ptr + offsets + HALF + dim, mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_pairs(
    ptr, offsets, is_head, first, second, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr
):
    dtype = ptr.dtype.element_ty
    if INTERLEAVED:
        dim = tl.arange(0, 2 * HALF_BLOCK)[None, :]
        pairs = tl.reshape(tl.join(first, second), (offsets.shape[0], 2 * HALF_BLOCK))
        tl.store(ptr + offsets + dim, pairs.to(dtype), mask=is_head & (dim < 2 * HALF))
    else:
        dim = tl.arange(0, HALF_BLOCK)[None, :]
        mask = is_head & (dim < HALF)
        tl.store(ptr + offsets + dim, first.to(dtype), mask=mask)
        tl.store(ptr + offsets + HALF + dim, second.to(dtype), mask=mask)


@triton.jit
def scale_normed(x, reciprocal_rms, weight, dtype: tl.constexpr):
    """Applies a norm's factor and weight; rounds to the tensor's dtype as rms_norm does."""
    normalised = x * reciprocal_rms
    if weight.dtype == dtype:
        normalised = normalised.to(dtype).to(tl.float32)
    return (normalised * weight.to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def _turn_heads(
    source_ptr,
    source_offsets,
    target_ptr,
    target_offsets,
    is_head,
    weight_ptr,
    angles_ptr,
    eps,
    IN_PLACE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Norms and rotates the heads that start at source_offsets, [HEADS, 1], and writes them to target_offsets."""
    dtype: tl.constexpr = source_ptr.dtype.element_ty
    first, second = load_pairs(source_ptr, source_offsets, is_head, HALF, HALF_BLOCK, INTERLEAVED)
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    cos = tl.load(angles_ptr + pair, mask=pair < HALF, other=0.0)  # [1, HALF_BLOCK]
    sin = tl.load(angles_ptr + HALF + pair, mask=pair < HALF, other=0.0)
    # The dimensions behind the rotated ones are touched only if there is a norm or a copy.
    moves_rest: tl.constexpr = REST_BLOCK > 0 and (HAS_NORM or not IN_PLACE)
    if moves_rest:
        rest_dim = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
        rest_mask = is_head & (rest_dim < HEAD_DIM)
        rest = tl.load(source_ptr + source_offsets + rest_dim, mask=rest_mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)  # [HEADS, 1]
        if moves_rest:
            squares += tl.sum(rest * rest, axis=1, keep_dims=True)
        reciprocal_rms = tl.rsqrt(squares / HEAD_DIM + eps)
        step: tl.constexpr = 2 if INTERLEAVED else 1
        second_start: tl.constexpr = 1 if INTERLEAVED else HALF
        weights = weight_ptr + pair * step
        first_weight = tl.load(weights, mask=pair < HALF, other=0.0)
        second_weight = tl.load(weights + second_start, mask=pair < HALF, other=0.0)
        first = scale_normed(first, reciprocal_rms, first_weight, dtype)
        second = scale_normed(second, reciprocal_rms, second_weight, dtype)
        if moves_rest:
            rest_weight = tl.load(weight_ptr + rest_dim, mask=rest_dim < HEAD_DIM, other=0.0)
            rest = scale_normed(rest, reciprocal_rms, rest_weight, dtype)
    turned_first, turned_second = first * cos - second * sin, second * cos + first * sin
    store_pairs(target_ptr, target_offsets, is_head, turned_first, turned_second, HALF, HALF_BLOCK, INTERLEAVED)
    if moves_rest:
        tl.store(target_ptr + target_offsets + rest_dim, rest.to(dtype), mask=rest_mask)


@triton.jit
def rotary_and_cache_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    positions_ptr,
    cos_sin_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slot_mapping_ptr,
    query_weight_ptr,
    key_weight_ptr,
    stride_query_token,
    stride_key_token,
    stride_value_token,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_tokens, cdiv(NUM_HEADS, QUERY_HEADS) + cdiv(NUM_KV_HEADS, KV_HEADS)); one program turns QUERY_HEADS
    query heads of one token in place, or writes KV_HEADS turned key heads and as many value heads to the caches.

    HALF pairs of each head turn; HALF_BLOCK and REST_BLOCK round them and the rest up to powers of two.
    """
    query_tiles: tl.constexpr = (NUM_HEADS + QUERY_HEADS - 1) // QUERY_HEADS
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    release_next(PDL)
    wait_for_previous(PDL)
    angles_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * (2 * HALF)
    if tile < query_tiles:
        head = (tile * QUERY_HEADS + tl.arange(0, QUERY_HEADS))[:, None]  # [QUERY_HEADS, 1]
        offsets = token * stride_query_token + head * HEAD_DIM
        _turn_heads(
            query_ptr,
            offsets,
            query_ptr,
            offsets,
            head < NUM_HEADS,
            query_weight_ptr,
            angles_ptr,
            eps,
            True,
            HAS_NORM,
            HEAD_DIM,
            HALF,
            HALF_BLOCK,
            REST_BLOCK,
            INTERLEAVED,
        )
    else:
        slot = tl.load(slot_mapping_ptr + token)
        if slot >= 0:
            head = ((tile - query_tiles) * KV_HEADS + tl.arange(0, KV_HEADS))[:, None]  # [KV_HEADS, 1]
            is_head = head < NUM_KV_HEADS
            dim = tl.arange(0, DIM_BLOCK)[None, :]
            mask = is_head & (dim < HEAD_DIM)
            cache_offsets = (slot * NUM_KV_HEADS + head) * HEAD_DIM
            value_offsets = token * stride_value_token + head * HEAD_DIM
            value = tl.load(value_ptr + value_offsets + dim, mask=mask)  # [KV_HEADS, DIM_BLOCK]
            _turn_heads(
                key_ptr,
                token * stride_key_token + head * HEAD_DIM,
                key_cache_ptr,
                cache_offsets,
                is_head,
                key_weight_ptr,
                angles_ptr,
                eps,
                False,
                HAS_NORM,
                HEAD_DIM,
                HALF,
                HALF_BLOCK,
                REST_BLOCK,
                INTERLEAVED,
            )
            tl.store(value_cache_ptr + cache_offsets + dim, value, mask=mask)


@dataclass(frozen=True, slots=True)
class _Specialisation:
    constexprs: dict[str, object]
    num_tiles: int
    num_warps: int


@cache
def _specialise(
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, interleaved: bool, has_norm: bool
) -> _Specialisation:
    dim_block = triton.next_power_of_2(head_dim)
    max_heads = max(1, _MAX_ELEMENTS // dim_block)
    query_heads = min(triton.next_power_of_2(num_heads), max_heads)
    # Half as many heads, because a program handles keys and values.
    kv_heads = min(triton.next_power_of_2(num_kv_heads), max(1, max_heads // 2))
    rest = head_dim - rotary_dim
    constexprs = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "QUERY_HEADS": query_heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "DIM_BLOCK": dim_block,
        "HALF": rotary_dim // 2,
        "HALF_BLOCK": triton.next_power_of_2(rotary_dim // 2),
        "REST_BLOCK": triton.next_power_of_2(rest) if rest else 0,
        "INTERLEAVED": interleaved,
        "HAS_NORM": has_norm,
    }
    num_tiles = triton.cdiv(num_heads, query_heads) + triton.cdiv(num_kv_heads, kv_heads)
    return _Specialisation(constexprs, num_tiles, max(1, query_heads * dim_block // _ELEMENTS_PER_WARP))


def rotary_and_cache(inputs: RotaryInputs) -> None:
    """See the package."""
    query, key, value = inputs.query, inputs.key, inputs.value
    num_tokens, num_heads, head_dim = query.shape
    if any(x.stride(2) != 1 or x.stride(1) != head_dim for x in (query, key, value)):
        raise ValueError("the heads of a token must be contiguous in query, key and value")
    caches = (inputs.key_cache, inputs.value_cache, inputs.cos_sin_cache)
    if not all(cache.is_contiguous() for cache in caches):
        raise ValueError("the caches must be contiguous")
    if inputs.positions.stride(0) != 1 or inputs.slot_mapping.stride(0) != 1:
        raise ValueError("positions and slot_mapping must be contiguous")
    if num_tokens == 0:
        return
    has_norm = inputs.q_norm_weight is not None
    rotary_dim = inputs.cos_sin_cache.shape[1]
    shape = _specialise(num_heads, key.shape[1], head_dim, rotary_dim, inputs.interleaved, has_norm)
    rotary_and_cache_kernel[(num_tokens, shape.num_tiles)](
        query,
        key,
        value,
        inputs.positions,
        inputs.cos_sin_cache,
        inputs.key_cache,
        inputs.value_cache,
        inputs.slot_mapping,
        inputs.q_norm_weight if inputs.q_norm_weight is not None else query,
        inputs.k_norm_weight if inputs.k_norm_weight is not None else key,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        inputs.eps,
        **shape.constexprs,
        **launch_options(query.device),
        num_warps=shape.num_warps,
    )
