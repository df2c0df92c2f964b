"""paged_attention on a CPU: distributes tiles of queries, each with one KV head, over the threads."""

import numpy as np
import torch
from numba import carray, cfunc, float32, int32, njit

from pagewire_kernels.cpu.simd_ir import LANES
from pagewire_kernels.cpu.team import FASTMATH, WORKER, float_bits, from_bits, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.paged_attention.cpu_tile import attend_tile
from pagewire_kernels.paged_attention.inputs import AttentionInputs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_TILE_ROWS = 48
"""Query rows (queries times heads of a group) that share one read of keys and values."""
_STRIP = 128
"""Keys of a strip, a multiple of LANES, whatever the batch: a row's bits depend on where strips begin. The scores of
_TILE_ROWS rows take 24 KB, half of a first-level cache."""


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (24,))
    num_items, query, query_stride, key_cache, value_cache = a[1], a[2], a[3], a[4], a[5]
    block_size, num_kv_heads, group_size, head_dim, table_stride = a[6], a[7], a[8], a[9], a[10]
    block_tables, query_start_loc, seq_lens, out, tiles = a[11], a[12], a[13], a[14], a[15]
    tile_queries, strip, num_seqs = a[16], a[17], a[18]
    window, scale, softcap = a[19], np.float32(from_bits(a[20])), np.float32(from_bits(a[21]))
    sinks, slopes = a[22], a[23]
    starts = carray(pointer(query_start_loc, int32), (num_seqs + 1,))
    lens = carray(pointer(seq_lens, int32), (num_seqs,))
    max_rows = tile_queries * group_size
    padded_dim = (head_dim + LANES - 1) // LANES * LANES
    out_stride = num_kv_heads * group_size * head_dim
    states = np.empty((max_rows, 2), np.float32)
    query_scratch = np.empty(max_rows * head_dim, np.float32)
    score_scratch = np.empty(max_rows * strip, np.float32)
    sum_scratch = np.empty(max_rows * padded_dim, np.float32)
    # Zeroed, because lanes without a key are computed too, though their results are not used.
    packed_keys, packed_values = np.zeros(strip * head_dim, np.float32), np.zeros(strip * padded_dim, np.float32)
    scratch = (
        query_scratch.ctypes.data,
        score_scratch.ctypes.data,
        sum_scratch.ctypes.data,
        packed_keys.ctypes.data,
        packed_values.ctypes.data,
    )
    while True:
        item = take(args, 1)
        if item >= num_items:
            break
        head, seq, first = item % num_kv_heads, item // num_kv_heads, np.int64(0)
        if tiles != 0:
            tile = carray(pointer(tiles + 8 * seq, int32), (2,))
            seq, first = np.int64(tile[0]), np.int64(tile[1])
        start, query_len, seq_len = np.int64(starts[seq]), np.int64(starts[seq + 1] - starts[seq]), np.int64(lens[seq])
        num_rows = min(tile_queries, query_len - first) * group_size
        row_offset = head * group_size * head_dim
        tile_out = out + 4 * ((start + first) * out_stride + row_offset)
        if seq_len == 0:
            for i in range(num_rows // group_size):
                carray(pointer(tile_out + 4 * i * out_stride, float32), (group_size * head_dim,))[:] = 0
            continue
        attend_tile(
            (num_rows, group_size, head_dim, padded_dim, strip),
            (key_cache, value_cache, num_kv_heads * head_dim * block_size, head * head_dim * block_size, block_size),
            carray(pointer(block_tables + 4 * seq * table_stride, int32), (table_stride,)),
            scratch,
            states,
            query + 4 * ((start + first) * query_stride + row_offset),
            query_stride,
            tile_out,
            out_stride,
            seq_len - query_len + first,
            (window, scale, softcap),
            slopes + 4 * head * group_size if slopes != 0 else 0,
            sinks + 4 * head * group_size if sinks != 0 else 0,
        )
    # These uses keep the scratch alive: numba frees an array after its last use, and does not count an address as one.
    query_scratch[0] = score_scratch[0] = sum_scratch[0] = packed_keys[0] = packed_values[0] = np.float32(0.0)


_ADDRESS: int = _worker.address


@njit(nogil=True, cache=True)
def list_tiles(query_start_loc, num_seqs, tile_queries, tiles):
    """Writes (sequence, first query) of every tile to `tiles`, a sequence's longest rows first; returns how many."""
    starts = carray(pointer(query_start_loc, int32), (num_seqs + 1,))
    count = 0
    for seq in range(num_seqs):
        query_len = np.int64(starts[seq + 1] - starts[seq])
        for i in range((query_len + tile_queries - 1) // tile_queries - 1, -1, -1):
            tile = carray(pointer(tiles + 8 * count, int32), (2,))
            tile[0], tile[1] = seq, i * tile_queries
            count += 1
    return count


def _is_float_row(tensor: torch.Tensor, length: int) -> bool:
    return tensor.dtype is torch.float32 and tensor.shape == (length,) and tensor.stride(0) == 1


def paged_attention(inputs: AttentionInputs) -> torch.Tensor:
    """See the package; float32 in the CPU layout, decodes and prefills alike."""
    query, key_cache, value_cache, block_tables = (
        inputs.query,
        inputs.key_cache,
        inputs.value_cache,
        inputs.block_tables,
    )
    query_start_loc, seq_lens = inputs.query_start_loc, inputs.seq_lens
    max_query_len, max_seq_len = inputs.max_query_len, inputs.max_seq_len
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = key_cache.shape[1], key_cache.shape[3]
    num_seqs = seq_lens.shape[0]
    group_size = num_heads // num_kv_heads
    query_stride, head_stride, stride = query.stride()
    if query.dtype is not torch.float32 or key_cache.dtype is not torch.float32:
        raise ValueError(f"CPU attention is float32, not {query.dtype} with a cache of {key_cache.dtype}")
    if stride != 1 or head_stride != head_dim:
        raise ValueError("the heads of a token must be contiguous in query")
    if block_tables.dtype is not torch.int32 or block_tables.stride(1) != 1:
        raise ValueError("block_tables must be int32 with contiguous rows")
    sinks, slopes = inputs.sinks, inputs.alibi_slopes
    for name, per_head in (("alibi_slopes", slopes), ("sinks", sinks)):
        if per_head is not None and not _is_float_row(per_head, num_heads):
            raise ValueError(f"{name} must be float32, contiguous and of shape [{num_heads}]")
    out = torch.empty((num_tokens, num_heads, head_dim))
    tile_queries = max(1, _TILE_ROWS // group_size) if max_query_len > 1 else 1
    num_items, tiles = num_seqs, 0
    if max_query_len > 1:
        tile_list = torch.empty((num_tokens // tile_queries + num_seqs, 2), dtype=torch.int32)
        tiles = tile_list.data_ptr()
        num_items = list_tiles(query_start_loc.data_ptr(), num_seqs, tile_queries, tiles)
    args = (
        num_items * num_kv_heads,
        query.data_ptr(),
        query_stride,
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        block_size,
        num_kv_heads,
        group_size,
        head_dim,
        block_tables.stride(0),
        block_tables.data_ptr(),
        query_start_loc.data_ptr(),
        seq_lens.data_ptr(),
        out.data_ptr(),
        tiles,
        tile_queries,
        _STRIP,
        num_seqs,
        inputs.sliding_window,
        float_bits(inputs.scale),
        float_bits(inputs.logit_softcap),
        sinks.data_ptr() if sinks is not None else 0,
        slopes.data_ptr() if slopes is not None else 0,
    )
    launch(_ADDRESS, team_size(num_tokens * num_kv_heads * head_dim * max_seq_len), args)
    return out
