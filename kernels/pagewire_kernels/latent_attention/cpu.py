"""latent_attention on a CPU, float32: distributes tiles of queries, each with a group of heads, over the threads.

Built like paged_attention's CPU version: strips of keys with online softmax, whose places depend on the sequence alone,
so that a row's bits do not depend on the batch or on how a prompt is cut up. Latents are copied to contiguous scratch,
transposed for the scores and as they are for the sums; all rows of a tile share the copies.
"""

import numpy as np
import torch
from numba import carray, cfunc, float32, int32, njit

from pagewire_kernels.cpu.simd import MASKED
from pagewire_kernels.cpu.simd_ir import LANES
from pagewire_kernels.cpu.team import FASTMATH, WORKER, float_bits, from_bits, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.latent_attention.inputs import LatentInputs
from pagewire_kernels.paged_attention.cpu import list_tiles
from pagewire_kernels.paged_attention.cpu_products import add_values, score_keys
from pagewire_kernels.paged_attention.cpu_tile import softmax_row

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_TILE_ROWS = 48
"""Most rows, queries times heads of a group, that share one copy of latents."""
_STRIP = 64
"""Keys of a strip, a multiple of LANES. Its copies take 270 KB for 576 elements a token, a part of a second-level
cache."""


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _pack(cache, block_size, width, latent_dim, padded_dim, table, first, num_keys, keys, values):
    """Copies up to LANES tokens: transposed to keys [width, LANES], their latents to values [LANES, padded_dim]."""
    packed_keys = carray(pointer(keys, float32), (width, LANES))
    packed_values = carray(pointer(values, float32), (LANES, padded_dim))
    for j in range(num_keys):
        slot = np.int64(table[(first + j) // block_size]) * block_size + (first + j) % block_size
        token = carray(pointer(cache + 4 * slot * width, float32), (width,))
        for d in range(width):
            packed_keys[d, j] = token[d]
        for d in range(latent_dim):
            packed_values[j, d] = token[d]


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _attend_strip(shape, cache, block_size, table, scratch, states, begin, end, position):
    """Takes keys begin to end into the states and sums of all rows."""
    num_rows, group_size, width, latent_dim, padded_dim, strip = shape
    query, scores, sums, packed_keys, packed_values = scratch
    num_vectors = (end - begin + LANES - 1) // LANES
    row_sums = carray(pointer(sums, float32), (num_rows, padded_dim))
    for v in range(num_vectors):
        first = begin + v * LANES
        keys = packed_keys + 4 * v * width * LANES
        values = packed_values + 4 * v * LANES * padded_dim
        num_keys = min(LANES, end - first)
        _pack(cache, block_size, width, latent_dim, padded_dim, table, first, num_keys, keys, values)
        score_keys(query, width, keys, LANES, num_rows, scores + 4 * v * LANES, strip)
    for row in range(num_rows):
        high = min(end, position + row // group_size + 1) - begin
        softmax_row(scores + 4 * row * strip, num_vectors, 0, high, states[row], row_sums[row])
    for v in range(num_vectors):
        num_keys = min(LANES, end - begin - v * LANES)
        values = packed_values + 4 * v * LANES * padded_dim
        add_values(scores + 4 * v * LANES, strip, values, num_keys, num_rows, sums, padded_dim)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _load_query(query, query_scratch, group_size, width, latent_dim, scale):
    """Copies the tile's queries, scaled, the rotated part behind the latent one: [rows, width].

    query: ((address, token stride, head stride) of the latent part, the same of the rotated part), in elements.
    """
    for part in range(2):
        address, token_stride, head_stride = query[part]
        begin, end = (0, latent_dim) if part == 0 else (latent_dim, width)
        for row in range(query_scratch.shape[0]):
            offset = row // group_size * token_stride + row % group_size * head_stride
            source = carray(pointer(address + 4 * offset, float32), (end - begin,))
            for d in range(end - begin):
                query_scratch[row, begin + d] = source[d] * scale


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (24,))
    num_items, latent, latent_token, latent_head, rope, rope_token, rope_head = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    cache, block_size, num_groups, group_size, latent_dim, width = a[8], a[9], a[10], a[11], a[12], a[13]
    block_tables, table_stride, query_start_loc, seq_lens, out = a[14], a[15], a[16], a[17], a[18]
    tiles, tile_queries, strip, num_seqs, scale = a[19], a[20], a[21], a[22], np.float32(from_bits(a[23]))
    starts = carray(pointer(query_start_loc, int32), (num_seqs + 1,))
    lens = carray(pointer(seq_lens, int32), (num_seqs,))
    max_rows = tile_queries * group_size
    padded_dim = (latent_dim + LANES - 1) // LANES * LANES
    states = np.empty((max_rows, 2), np.float32)
    query_scratch, score_scratch = np.empty((max_rows, width), np.float32), np.empty(max_rows * strip, np.float32)
    sums = np.empty((max_rows, padded_dim), np.float32)
    # Zeroed, because lanes without a key are computed too, though their results are not used.
    packed_keys, packed_values = np.zeros(strip * width, np.float32), np.zeros(strip * padded_dim, np.float32)
    scratch = (
        query_scratch.ctypes.data,
        score_scratch.ctypes.data,
        sums.ctypes.data,
        packed_keys.ctypes.data,
        packed_values.ctypes.data,
    )
    while True:
        item = take(args, 1)
        if item >= num_items:
            break
        group, tile = item % num_groups, carray(pointer(tiles + 8 * (item // num_groups), int32), (2,))
        seq, first = np.int64(tile[0]), np.int64(tile[1])
        start, query_len, seq_len = np.int64(starts[seq]), np.int64(starts[seq + 1] - starts[seq]), np.int64(lens[seq])
        num_queries = min(tile_queries, query_len - first)
        num_rows, token, first_head = num_queries * group_size, start + first, group * group_size
        query = (
            (latent + 4 * (token * latent_token + first_head * latent_head), latent_token, latent_head),
            (rope + 4 * (token * rope_token + first_head * rope_head), rope_token, rope_head),
        )
        if seq_len > 0:
            _load_query(query, query_scratch[:num_rows], group_size, width, latent_dim, scale)
            states[:, 0] = MASKED
            states[:, 1] = 0
            sums[:] = 0
            position = seq_len - query_len + first
            end = position + num_queries
            shape = (num_rows, group_size, width, latent_dim, padded_dim, strip)
            table = carray(pointer(block_tables + 4 * seq * table_stride, int32), (table_stride,))
            for begin in range(0, end, strip):
                strip_end = min(begin + strip, end)
                _attend_strip(shape, cache, block_size, table, scratch, states, begin, strip_end, position)
        for row in range(num_rows):
            head_row = (token + row // group_size) * num_groups * group_size + first_head + row % group_size
            target = carray(pointer(out + 4 * head_row * latent_dim, float32), (latent_dim,))
            factor = np.float32(1) / states[row, 1] if seq_len > 0 else np.float32(0)
            for d in range(latent_dim):
                target[d] = sums[row, d] * factor if seq_len > 0 else np.float32(0)
    # These uses keep the scratch alive: numba frees an array after its last use, and does not count an address as one.
    query_scratch[0, 0] = score_scratch[0] = sums[0, 0] = packed_keys[0] = packed_values[0] = np.float32(0.0)


_ADDRESS: int = _worker.address


def latent_attention(inputs: LatentInputs) -> torch.Tensor:
    """See the package; float32, decodes and prefills alike."""
    query, rope, cache, tables = inputs.query_latent, inputs.query_rope, inputs.cache, inputs.block_tables
    if cache.dtype is not torch.float32:
        raise ValueError(f"CPU attention is float32, not {cache.dtype}")
    if tables.dtype is not torch.int32:
        raise ValueError("block_tables must be int32")
    num_tokens, num_heads, latent_dim = query.shape
    num_seqs = inputs.seq_lens.shape[0]
    # Groups divide the heads, so that the rows of a tile are its queries, each with all heads of a group.
    group_size = max(size for size in range(1, min(num_heads, _TILE_ROWS) + 1) if num_heads % size == 0)
    tile_queries = max(1, _TILE_ROWS // group_size) if inputs.max_query_len > 1 else 1
    tiles = torch.empty((num_tokens // tile_queries + num_seqs, 2), dtype=torch.int32)
    num_tiles = list_tiles(inputs.query_start_loc.data_ptr(), num_seqs, tile_queries, tiles.data_ptr())
    out = torch.empty((num_tokens, num_heads, latent_dim))
    args = (
        num_tiles * (num_heads // group_size),
        query.data_ptr(),
        *query.stride()[:2],
        rope.data_ptr(),
        *rope.stride()[:2],
        cache.data_ptr(),
        inputs.block_size,
        num_heads // group_size,
        group_size,
        latent_dim,
        cache.shape[2],
        tables.data_ptr(),
        tables.stride(0),
        inputs.query_start_loc.data_ptr(),
        inputs.seq_lens.data_ptr(),
        out.data_ptr(),
        tiles.data_ptr(),
        tile_queries,
        _STRIP,
        num_seqs,
        float_bits(inputs.scale),
    )
    launch(_ADDRESS, team_size(num_tokens * num_heads * latent_dim * inputs.max_seq_len), args)
    return out
