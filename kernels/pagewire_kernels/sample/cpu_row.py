"""What the stages of sampling on a CPU share: the largest of a row's logits, and whether it is poisoned. Tensors are
addresses."""

import numpy as np
from numba import carray, float32, int32, njit

from pagewire_kernels.cpu.simd import MASKED, row_max
from pagewire_kernels.cpu.simd_ir import LANES
from pagewire_kernels.cpu.team import FASTMATH, pointer

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_INFINITY_KEY = np.int32(0x7F800000)
_CHUNK = 1024
"""Logits whose maximum is taken at once, a multiple of LANES."""


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def largest(values, count):
    """The largest of `count` values, at least MASKED."""
    num_vectors = count // LANES
    best = row_max(values, num_vectors)
    row = carray(pointer(values, float32), (count,))
    for i in range(num_vectors * LANES, count):
        best = max(best, row[i])
    return best


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def first_largest(values, count):
    """The index of the first of the largest values."""
    best, best_chunk = np.float32(MASKED), 0
    for chunk in range(0, count, _CHUNK):
        candidate = largest(values + 4 * chunk, min(_CHUNK, count - chunk))
        if candidate > best:
            best, best_chunk = candidate, chunk
    row = carray(pointer(values, float32), (count,))
    for i in range(best_chunk, count):
        if row[i] == best:
            return i
    return 0


@njit(nogil=True, error_model="numpy", cache=True)
def is_poisoned(values, count):
    """Whether NaN or plus infinity is among `count` values. Looks at bits, in the order of floats: integers vectorise,
    and no rule of fast arithmetic applies to them."""
    bits = carray(pointer(values, int32), (count,))
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for i in range(count):
        key = np.int32(bits[i] ^ np.int32(np.int32(bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        high = max(high, key)
        low = min(low, key)
    return high >= _INFINITY_KEY or low < ~_INFINITY_KEY
