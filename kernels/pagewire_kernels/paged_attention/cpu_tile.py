"""CPU attention of one tile of queries with one KV head, in float32 on the CPU layout of kv_cache.py.

The keys are walked in strips whose scores stay in the first-level cache, with flash attention's online softmax
(arXiv:2205.14135). A tile's rows are its queries, each with all query heads of the KV head's group. Strips begin at
multiples of their length, so that what a row is does not depend on the tile it is in.

Tuples that travel together, of int64:
    shape = (num_rows, group_size, head_dim, padded_dim, strip): padded_dim is head_dim rounded up to LANES, strip the
        keys of a strip, a multiple of LANES;
    cache = (key_cache, value_cache, block_stride, head_offset, block_size): two addresses, then elements;
    scratch = (query, scores, sums, packed_keys, packed_values): addresses of [rows, head_dim], [rows, strip],
        [rows, padded_dim], [strip / LANES, head_dim, LANES], [strip / LANES, LANES, padded_dim].
"""

import numpy as np
from numba import carray, float32, njit

from pagewire_kernels.cpu.simd import MASKED, exp, prefetch, row_exp, row_max, row_slope, row_softcap
from pagewire_kernels.cpu.simd_ir import LANES
from pagewire_kernels.cpu.team import FASTMATH, pointer
from pagewire_kernels.paged_attention.cpu_products import add_values, score_keys

# Untyped: numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _pack(cache, table, first, num_keys, head_dim, padded_dim, keys, values):
    """Copies up to LANES keys and values, which may lie in several blocks, to contiguous scratch for the products."""
    key_cache, value_cache, block_stride, head_offset, block_size = cache
    packed_keys = carray(pointer(keys, float32), (head_dim, LANES))
    packed_values = carray(pointer(values, float32), (LANES, padded_dim))
    for j in range(num_keys):
        slot = (first + j) % block_size
        base = 4 * (np.int64(table[(first + j) // block_size]) * block_stride + head_offset)
        key = carray(pointer(key_cache + base, float32), (head_dim, block_size))
        value = carray(pointer(value_cache + base, float32), (block_size, head_dim))
        for d in range(head_dim):
            packed_keys[d, j] = key[d, slot]
            packed_values[j, d] = value[slot, d]


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _score_strip(shape, cache, table, scratch, begin, end, first_visible):
    """Computes the scores of all rows with keys begin to end, rounded up to whole vectors; none before that of
    first_visible, whose scores are left as they are."""
    num_rows, _, head_dim, padded_dim, strip = shape
    key_cache, _, block_stride, head_offset, block_size = cache
    query, scores, _, packed_keys, packed_values = scratch
    is_direct = block_size % LANES == 0 and head_dim == padded_dim
    for v in range(max(0, first_visible - begin) // LANES, (end - begin + LANES - 1) // LANES):
        first = begin + v * LANES
        if is_direct:
            offset = np.int64(table[first // block_size]) * block_stride + head_offset + first % block_size
            keys, key_stride = key_cache + 4 * offset, block_size
        else:
            keys, key_stride = packed_keys + 4 * v * head_dim * LANES, LANES
            values = packed_values + 4 * v * LANES * padded_dim
            _pack(cache, table, first, min(LANES, end - first), head_dim, padded_dim, keys, values)
        score_keys(query, head_dim, keys, key_stride, num_rows, scores + 4 * v * LANES, strip)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def softmax_row(scores, num_vectors, low, high, state, sums):
    """One step of the online softmax of one row, in place; keys outside [low, high) get weight 0.

    state: [2], the row's maximum and sum of weights so far; sums: [padded_dim], its weighted values so far.
    """
    row = carray(pointer(scores, float32), (num_vectors * LANES,))
    if high <= low:
        row[:] = 0
        return
    row[:low] = MASKED
    row[high:] = MASKED
    largest = max(state[0], row_max(scores, num_vectors))
    if largest > state[0]:
        rescale = exp(state[0] - largest)
        state[0] = largest
        state[1] *= rescale
        for d in range(sums.size):
            sums[d] *= rescale
    state[1] += row_exp(scores, num_vectors, largest)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _add_strip(shape, cache, table, scratch, begin, end, first_visible):
    """Adds the strip's weighted values. No row sees a key before first_visible."""
    num_rows, _, head_dim, padded_dim, strip = shape
    _, value_cache, block_stride, head_offset, block_size = cache
    _, scores, sums, _, packed_values = scratch
    is_direct = block_size % LANES == 0 and head_dim == padded_dim
    for v in range(max(0, first_visible - begin) // LANES, (end - begin + LANES - 1) // LANES):
        first = begin + v * LANES
        # A value that was never written may be NaN, which a weight of 0 would not remove.
        skipped = max(0, first_visible - first)
        if is_direct:
            block_offset = np.int64(table[first // block_size]) * block_stride + head_offset
            values = value_cache + 4 * (block_offset + (first % block_size) * head_dim)
        else:
            values = packed_values + 4 * v * LANES * padded_dim
        weights = scores + 4 * (v * LANES + skipped)
        num_keys = min(LANES, end - first) - skipped
        add_values(weights, strip, values + 4 * skipped * padded_dim, num_keys, num_rows, sums, padded_dim)


@njit(nogil=True, error_model="numpy", cache=True)
def prefetch_keys(shape, cache, table, begin, end):
    """Has the keys and values from begin to end fetched, in whole blocks."""
    key_cache, value_cache, block_stride, head_offset, block_size = cache
    num_bytes = 4 * shape[2] * block_size
    for index in range(begin // block_size, (end + block_size - 1) // block_size):
        offset = 4 * (np.int64(table[index]) * block_stride + head_offset)
        prefetch(key_cache + offset, num_bytes)
        prefetch(value_cache + offset, num_bytes)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def attend_tile(
    shape, cache, table, scratch, states, query, query_stride, out, out_stride, position, options, slopes, sinks
):
    """Attends from one tile of queries.

    states: [rows, 2] float32 scratch. query, out: addresses of the first query's rows of this group, with the elements
    from one token to the next. position: position of the first query. options: (sliding_window, scale, logit_softcap).
    slopes: address of an ALiBi slope for each head of the group; 0: none. sinks: address of a score without a value for
    each head of the group; 0: none.
    """
    num_rows, group_size, head_dim, padded_dim, strip = shape
    window, scale, softcap = options
    group_slopes = carray(pointer(slopes, float32), (group_size,))
    _, scores, _, _, _ = scratch
    scaled_query = carray(pointer(scratch[0], float32), (num_rows, head_dim))
    sums = carray(pointer(scratch[2], float32), (num_rows, padded_dim))
    for row in range(num_rows):
        offset = row // group_size * query_stride + row % group_size * head_dim
        source = carray(pointer(query + 4 * offset, float32), (head_dim,))
        for d in range(head_dim):
            scaled_query[row, d] = source[d] * scale
        states[row, 0] = MASKED
        states[row, 1] = 0
        if sinks != 0:
            states[row, 0] = carray(pointer(sinks, float32), (group_size,))[row % group_size]
            states[row, 1] = 1
    sums[:] = 0
    end = position + num_rows // group_size
    first_visible = max(0, position - window + 1) if window > 0 else 0
    prefetch_keys(shape, cache, table, first_visible, min(first_visible // strip * strip + strip, end))
    for strip_begin in range(first_visible // strip * strip, end, strip):
        strip_end = min(strip_begin + strip, end)
        num_vectors = (strip_end - strip_begin + LANES - 1) // LANES
        prefetch_keys(shape, cache, table, strip_end, min(strip_end + strip, end))
        _score_strip(shape, cache, table, scratch, strip_begin, strip_end, first_visible)
        for row in range(num_rows):
            row_scores = scores + 4 * row * strip
            if softcap > 0:
                row_softcap(row_scores, num_vectors, softcap)
            row_position = position + row // group_size
            if slopes != 0:
                slope = group_slopes[row % group_size]
                row_slope(row_scores, num_vectors, slope, np.float32(row_position - strip_begin))
            low = max(0, row_position - window + 1 - strip_begin) if window > 0 else 0
            high = min(strip_end, row_position + 1) - strip_begin
            softmax_row(row_scores, num_vectors, low, high, states[row], sums[row])
        _add_strip(shape, cache, table, scratch, strip_begin, strip_end, first_visible)
    for row in range(num_rows):
        offset = row // group_size * out_stride + row % group_size * head_dim
        target = carray(pointer(out + 4 * offset, float32), (head_dim,))
        factor = np.float32(1) / states[row, 1]
        for d in range(head_dim):
            target[d] = sums[row, d] * factor
