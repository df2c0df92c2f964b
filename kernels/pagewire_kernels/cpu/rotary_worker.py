"""Rotary embedding and cache writes on a CPU, float32, on the CPU layout of kv_cache.py.

One worker serves three ops: apply_rotary (no caches), reshape_and_cache (no angles) and both at once.
"""

import torch
from numba import carray, cfunc, float32, int64, njit

from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _rotate(heads, num_heads, head_dim, angles, half, interleaved):
    """Rotates one token's heads in place; heads and angles are addresses."""
    cos = carray(pointer(angles, float32), (half,))
    sin = carray(pointer(angles + 4 * half, float32), (half,))
    for h in range(num_heads):
        head = heads + 4 * h * head_dim
        if interleaved != 0:
            pairs = carray(pointer(head, float32), (half, 2))
            for i in range(half):
                x, y = pairs[i, 0], pairs[i, 1]
                pairs[i, 0] = x * cos[i] - y * sin[i]
                pairs[i, 1] = y * cos[i] + x * sin[i]
        else:
            first = carray(pointer(head, float32), (half,))
            second = carray(pointer(head + 4 * half, float32), (half,))
            for i in range(half):
                x, y = first[i], second[i]
                first[i] = x * cos[i] - y * sin[i]
                second[i] = y * cos[i] + x * sin[i]


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _write(key, value, key_cache, value_cache, slot, num_heads, head_dim, block_size):
    """Writes one token's heads to its slot; tensors are addresses."""
    block, offset = slot // block_size, slot % block_size
    for h in range(num_heads):
        base = 4 * (block * num_heads + h) * head_dim * block_size
        keys = carray(pointer(key_cache + base, float32), (head_dim, block_size))
        values = carray(pointer(value_cache + base, float32), (block_size, head_dim))
        new_key = carray(pointer(key + 4 * h * head_dim, float32), (head_dim,))
        new_value = carray(pointer(value + 4 * h * head_dim, float32), (head_dim,))
        for d in range(head_dim):
            keys[d, offset] = new_key[d]
        for d in range(head_dim):
            values[offset, d] = new_value[d]


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (20,))
    num_tokens, tokens_per_take, head_dim, num_heads, num_kv_heads, block_size = a[1], a[2], a[3], a[4], a[5], a[6]
    query, query_stride, key, key_stride, value, value_stride = a[7], a[8], a[9], a[10], a[11], a[12]
    positions, angles, half, interleaved = a[13], a[14], a[15], a[16]
    key_cache, value_cache, slots = a[17], a[18], a[19]
    while True:
        first = take(args, tokens_per_take)
        if first >= num_tokens:
            return
        for t in range(first, min(first + tokens_per_take, num_tokens)):
            token_key = key + 4 * t * key_stride
            if half > 0:
                position = carray(pointer(positions, int64), (num_tokens,))[t]
                row = angles + 8 * position * half
                _rotate(query + 4 * t * query_stride, num_heads, head_dim, row, half, interleaved)
                _rotate(token_key, num_kv_heads, head_dim, row, half, interleaved)
            if slots != 0:
                slot = carray(pointer(slots, int64), (num_tokens,))[t]
                if slot >= 0:
                    token_value = value + 4 * t * value_stride
                    _write(token_key, token_value, key_cache, value_cache, slot, num_kv_heads, head_dim, block_size)


_ADDRESS: int = _worker.address


def token_stride(heads: torch.Tensor) -> int:
    """Returns the elements from one token of [num_tokens, num_heads, head_dim] to the next."""
    token_stride, head_stride, stride = heads.stride()
    if heads.dtype is not torch.float32 or stride != 1 or head_stride != heads.shape[2]:
        raise ValueError("query, key and value must be float32 with each token's heads contiguous")
    return token_stride


def angle_arguments(
    positions: torch.Tensor, cos_sin_cache: torch.Tensor, interleaved: bool
) -> tuple[int, int, int, int]:
    """Returns the worker's arguments of a rotation: two addresses, half of rotary_dim, and the layout of the pairs."""
    if positions.dtype is not torch.int64 or not positions.is_contiguous():
        raise ValueError("positions must be int64 and contiguous")
    if cos_sin_cache.dtype is not torch.float32 or not cos_sin_cache.is_contiguous():
        raise ValueError("cos_sin_cache must be float32 and contiguous")
    return positions.data_ptr(), cos_sin_cache.data_ptr(), cos_sin_cache.shape[1] // 2, int(interleaved)


def apply_rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    interleaved: bool = False,
) -> None:
    """See pagewire_kernels.rotary."""
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[1]
    tensors = (query.data_ptr(), token_stride(query), key.data_ptr(), token_stride(key), 0, 0)
    counts = (head_dim, num_heads, num_kv_heads, 1)
    run(num_tokens, counts, tensors, angle_arguments(positions, cos_sin_cache, interleaved), (0, 0, 0))


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """See pagewire_kernels.reshape_and_cache."""
    num_tokens, num_kv_heads, head_dim = key.shape
    tensors = (0, 0, key.data_ptr(), token_stride(key), value.data_ptr(), token_stride(value))
    counts = (head_dim, 0, num_kv_heads, key_cache.shape[3])
    caches = (key_cache.data_ptr(), value_cache.data_ptr(), slot_mapping.data_ptr())
    run(num_tokens, counts, tensors, (0, 0, 0, 0), caches)


def run(
    num_tokens: int,
    counts: tuple[int, int, int, int],
    tensors: tuple[int, ...],
    angles: tuple[int, int, int, int],
    caches: tuple[int, int, int],
) -> None:
    """Launches the worker.

    Args:
        counts: head_dim, num_heads, num_kv_heads, block_size.
        tensors: Address and token stride of query, key and value; zeros for tensors that an op does not have.
        angles: The result of angle_arguments; zeros: nothing is rotated.
        caches: Addresses of the key cache, the value cache and the slot mapping; zeros: nothing is written.
    """
    head_dim, num_heads, num_kv_heads, _ = counts
    num_threads = team_size(num_tokens * (num_heads + 2 * num_kv_heads) * head_dim)
    tokens_per_take = max(1, num_tokens // (4 * num_threads))
    launch(_ADDRESS, num_threads, (num_tokens, tokens_per_take, *counts, *tensors, *angles, *caches))
