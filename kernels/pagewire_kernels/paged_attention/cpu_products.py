"""The two matrix products of CPU attention, made of register tiles.

Tiles of all sizes add up in the same order, and nothing here may be reordered: a row's bits do not depend on the rows
that are computed beside it.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from numba import njit

from pagewire_kernels.cpu.simd import HAS_AVX512, make_gemm_tile
from pagewire_kernels.cpu.simd_ir import LANES

_SCORE_ROWS = 12 if HAS_AVX512 else 3
"""Rows whose scores stay in registers at the same time; they take three quarters of the vector registers."""
_CHAINS = 2
"""Sums of a score that run side by side: a few rows would wait for each multiply-add otherwise."""

_score_most = make_gemm_tile(_SCORE_ROWS, 1, accumulate=False, num_chains=_CHAINS)
_score_6 = make_gemm_tile(6, 1, accumulate=False, num_chains=_CHAINS)
_score_3 = make_gemm_tile(3, 1, accumulate=False, num_chains=_CHAINS)
_score_2 = make_gemm_tile(2, 1, accumulate=False, num_chains=_CHAINS)
_score_1 = make_gemm_tile(1, 1, accumulate=False, num_chains=_CHAINS)

_VALUE_COLUMNS = 2 if HAS_AVX512 else 1
_value_6 = make_gemm_tile(6, _VALUE_COLUMNS, accumulate=True)
_value_6_narrow = make_gemm_tile(6, 1, accumulate=True)
_value_3 = make_gemm_tile(3, 2, accumulate=True)
_value_2 = make_gemm_tile(2, 2, accumulate=True)
_value_1 = make_gemm_tile(1, 2, accumulate=True)
_value_1_narrow = make_gemm_tile(1, 1, accumulate=True)


@njit(nogil=True, error_model="numpy", cache=True)
def score_keys(query, head_dim, keys, key_stride, num_rows, scores, score_stride):
    """scores[num_rows, LANES] = query[num_rows, head_dim] @ keys[head_dim, LANES]; tensors are addresses."""
    row = 0
    while num_rows - row >= _SCORE_ROWS:
        a, c = query + 4 * row * head_dim, scores + 4 * row * score_stride
        _score_most(a, head_dim, keys, key_stride, head_dim, c, score_stride)
        row += _SCORE_ROWS
    while row < num_rows:
        a, c = query + 4 * row * head_dim, scores + 4 * row * score_stride
        left = num_rows - row
        if left >= 6:
            _score_6(a, head_dim, keys, key_stride, head_dim, c, score_stride)
            row += 6
        elif left >= 3:
            _score_3(a, head_dim, keys, key_stride, head_dim, c, score_stride)
            row += 3
        elif left == 2:
            _score_2(a, head_dim, keys, key_stride, head_dim, c, score_stride)
            row += 2
        else:
            _score_1(a, head_dim, keys, key_stride, head_dim, c, score_stride)
            row += 1


@njit(nogil=True, error_model="numpy", cache=True)
def _add_values_narrow(weights, weight_stride, values, num_keys, num_rows, out, out_stride):
    """add_values for one vector of dimensions."""
    row = 0
    while num_rows - row >= 6:
        a, c = weights + 4 * row * weight_stride, out + 4 * row * out_stride
        _value_6_narrow(a, weight_stride, values, out_stride, num_keys, c, out_stride)
        row += 6
    while row < num_rows:
        a, c = weights + 4 * row * weight_stride, out + 4 * row * out_stride
        _value_1_narrow(a, weight_stride, values, out_stride, num_keys, c, out_stride)
        row += 1


@njit(nogil=True, error_model="numpy", cache=True)
def add_values(weights, weight_stride, values, num_keys, num_rows, out, out_stride):
    """out[num_rows, out_stride] += weights[num_rows, num_keys] @ values[num_keys, out_stride]; tensors are addresses.

    out_stride is head_dim rounded up to a multiple of LANES.
    """
    wide = out_stride // (2 * LANES)
    for column in range(wide):
        b, c0 = values + 4 * column * 2 * LANES, out + 4 * column * 2 * LANES
        row = 0
        while num_rows - row >= 6:
            a, c = weights + 4 * row * weight_stride, c0 + 4 * row * out_stride
            _value_6(a, weight_stride, b, out_stride, num_keys, c, out_stride)
            if _VALUE_COLUMNS == 1:
                right = 4 * LANES
                _value_6(a, weight_stride, b + right, out_stride, num_keys, c + right, out_stride)
            row += 6
        while row < num_rows:
            a, c = weights + 4 * row * weight_stride, c0 + 4 * row * out_stride
            left = num_rows - row
            if left >= 3:
                _value_3(a, weight_stride, b, out_stride, num_keys, c, out_stride)
                row += 3
            elif left == 2:
                _value_2(a, weight_stride, b, out_stride, num_keys, c, out_stride)
                row += 2
            else:
                _value_1(a, weight_stride, b, out_stride, num_keys, c, out_stride)
                row += 1
    if out_stride % (2 * LANES) != 0:
        skip = 4 * wide * 2 * LANES
        _add_values_narrow(weights, weight_stride, values + skip, num_keys, num_rows, out + skip, out_stride)
