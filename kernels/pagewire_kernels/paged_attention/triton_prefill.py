"""Prefill attention on a GPU: several new tokens per sequence, after any number of tokens that the cache holds already.

FlashAttention-2 (arXiv:2307.08691) over a paged cache: tiles of queries large enough for Hopper's wgmma, and keys in
tiles, of which those that every query sees are computed without masks and those that none sees not at all.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.traits import gpu_traits
from pagewire_kernels.paged_attention.inputs import AttentionInputs
from pagewire_kernels.paged_attention.triton_tile import (
    LOG2_E,
    LOWEST,
    add_sinks,
    look_up,
    score_factor,
    shape_scores,
    softmax_step,
    tile_offsets,
)
from pagewire_kernels.tuning.paged_attention import PrefillConfig, prefill_config, tile_for

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@triton.jit
def find_sequence(query_start_loc_ptr, tile, first_seq, num_seqs, BLOCK_Q: tl.constexpr):
    """Returns the sequence that a tile belongs to, among those from first_seq on.

    The s-th of them owns tiles from (tokens of those before it) // BLOCK_Q + s on: enough, whatever their lengths.
    """
    first_token = tl.load(query_start_loc_ptr + first_seq)
    low, high = first_seq, num_seqs
    while low < high:
        middle = (low + high) // 2
        if (tl.load(query_start_loc_ptr + middle) - first_token) // BLOCK_Q + middle - first_seq <= tile:
            low = middle + 1
        else:
            high = middle
    seq = low - 1
    return seq, tile - ((tl.load(query_start_loc_ptr + seq) - first_token) // BLOCK_Q + seq - first_seq)


@triton.jit
def _load_keys(
    cache,
    blocks,
    start,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """[TILE, BLOCK_D]. Slots that no row sees may hold NaN: so may the products with them, which are masked."""
    dims = tl.arange(0, BLOCK_D)
    offsets = tile_offsets(blocks, start, kv_head, dims, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
    if HEAD_DIM == BLOCK_D:
        keys = tl.load(cache[0] + offsets)
    else:
        keys = tl.load(cache[0] + offsets, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    return keys


@triton.jit
def _add_values(
    accumulator,
    weights,
    cache,
    blocks,
    start,
    seen,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """accumulator + weights [BLOCK_M, TILE] x values [TILE, BLOCK_D].

    Slots outside seen = (first, end) count as zero: they may hold NaN, and 0 * NaN is NaN.
    """
    dims = tl.arange(0, BLOCK_D)
    offsets = tile_offsets(blocks, start, kv_head, dims, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
    slots = start + tl.arange(0, TILE)
    is_seen = (slots >= seen[0]) & (slots < seen[1])
    values = tl.load(cache[1] + offsets, mask=is_seen[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    return tl.dot(weights.to(values.dtype), values, accumulator, input_precision="ieee")


@triton.jit
def _attend(
    query,
    cache,
    bounds,
    seen,
    positions,
    scoring,
    state,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    TILE: tl.constexpr,
    LATE_VALUES: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Takes tiles bounds[0], bounds[0] + TILE ... before bounds[1] into state. Without MASKED every row sees them all.

    state = (maximum [BLOCK_M], total [BLOCK_M], weighted sum [BLOCK_M, BLOCK_D], blocks of this tile; and, with
    LATE_VALUES, of the tile before this: weights [BLOCK_M, TILE], factors for the sum [BLOCK_M], blocks).

    LATE_VALUES: a tile's values are added one round later, so that tensor cores do it while the round's exponentials
    are computed (FlashAttention-3, arXiv:2407.08608, section 3.2). It has to be the values: scores that are under way
    may not be carried to the next round, or ptxas makes all products wait for each other.
    """
    maximum, total, accumulator, blocks, weights, rescale, last_blocks = state
    slopes, score_scale, softcap_log2 = scoring
    factor = score_factor(score_scale, HAS_SOFTCAP, HAS_ALIBI)
    for start in range(bounds[0], bounds[1], TILE):
        keys = _load_keys(cache, blocks, start, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE)
        products = tl.dot(query, tl.trans(keys), input_precision="ieee")  # [BLOCK_M, TILE]
        if LATE_VALUES:
            accumulator = _add_values(
                accumulator * rescale[:, None], weights, cache, last_blocks, start - TILE, seen, kv_head,
                NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE,
            )  # fmt: skip
            # Not `blocks`: the pipeliner leaves loops alone that carry a value on for two rounds.
            last_blocks = look_up(cache[2], start, seen[1], BLOCK_SIZE, TILE)
        distance = positions[:, None] - (start + tl.arange(0, TILE))[None, :]
        scores = shape_scores(products, distance, slopes, score_scale, softcap_log2, HAS_SOFTCAP, HAS_ALIBI)
        if MASKED:
            visible = distance >= 0
            if SLIDING_WINDOW > 0:
                visible = visible & (distance < SLIDING_WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        maximum, weights, rescale = softmax_step(scores, factor, maximum)
        total = total * rescale + tl.sum(weights, axis=1)
        if not LATE_VALUES:
            accumulator = _add_values(
                accumulator * rescale[:, None], weights, cache, blocks, start, seen, kv_head,
                NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE,
            )  # fmt: skip
        blocks = look_up(cache[2], start + TILE, seen[1], BLOCK_SIZE, TILE)
    return maximum, total, accumulator, blocks, weights, rescale, last_blocks


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def prefill_attention_kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    block_tables_ptr,
    query_start_loc_ptr,
    seq_lens_ptr,
    alibi_slopes_ptr,
    sinks_ptr,
    row_counts_ptr,
    out_ptr,
    score_scale,
    softcap_log2,
    first_seq,
    num_seqs,
    stride_query_token,
    stride_table,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    LATE_VALUES: tl.constexpr,
):
    """Grid: (num_tokens // BLOCK_Q + num_seqs - first_seq, NUM_KV_HEADS); one program attends from a tile of BLOCK_Q
    queries, each with the GROUP_SIZE query heads of one KV head, so that keys and values are read once for all of them.
    Tiles vary fastest, a sequence's last ones first: they see most keys, and the short ones fill the gaps at the end.

    Row m of a tile is query m // GROUP_SIZE and head m % GROUP_SIZE. The grid is an upper bound, known without the
    lengths; it leaves some programs without work. With row_counts_ptr first_seq and num_seqs are read there, and the
    grid covers any of them.
    """
    kv_head = tl.program_id(1)
    if row_counts_ptr is not None:
        num_seqs = tl.load(row_counts_ptr).to(tl.int32)
        first_seq = tl.load(row_counts_ptr + 1).to(tl.int32)
        num_tokens = tl.load(query_start_loc_ptr + num_seqs) - tl.load(query_start_loc_ptr + first_seq)
        if tl.program_id(0) >= num_tokens // BLOCK_Q + num_seqs - first_seq:
            return
    HAS_ALIBI: tl.constexpr = alibi_slopes_ptr is not None
    seq, tile = find_sequence(query_start_loc_ptr, tl.program_id(0), first_seq, num_seqs, BLOCK_Q)
    query_start = tl.load(query_start_loc_ptr + seq)
    query_len = tl.load(query_start_loc_ptr + seq + 1) - query_start
    first_query = (tl.cdiv(query_len, BLOCK_Q) - 1 - tile) * BLOCK_Q
    if first_query < 0:
        return
    seq_len = tl.load(seq_lens_ptr + seq)
    first_position = seq_len - query_len + first_query

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    query_index = first_query + rows // GROUP_SIZE
    heads = kv_head * GROUP_SIZE + rows % GROUP_SIZE
    row_mask = (query_index < query_len) & (rows < BLOCK_Q * GROUP_SIZE)
    mask = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
    token = (query_start + query_index).to(tl.int64)
    query_offsets = token[:, None] * stride_query_token + heads[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(query_ptr + query_offsets, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_D]
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if HAS_ALIBI:
        slopes = tl.load(alibi_slopes_ptr + heads, mask=row_mask, other=0.0).to(tl.float32) * LOG2_E
    table_ptr = block_tables_ptr + seq.to(tl.int64) * stride_table

    positions = first_position + rows // GROUP_SIZE
    # Void rows have negative positions and see nothing.
    end = tl.minimum(first_position + BLOCK_Q, seq_len)
    # The tile's first query, and so each of them, sees all keys up to the last whole tile ...
    last_whole = tl.maximum(first_position + 1, 0) // TILE * TILE
    first_key, begin, first_whole = 0, 0, 0
    if SLIDING_WINDOW > 0:
        # ... from the first key in its last query's window on.
        first_key = tl.maximum(first_position - SLIDING_WINDOW + 1, 0)
        begin = first_key // TILE * TILE
        first_whole = tl.minimum(tl.cdiv(tl.maximum(end - SLIDING_WINDOW, 0), TILE) * TILE, last_whole)
    bounds = (begin, first_whole, last_whole, end)
    seen = (first_key, end)
    cache = (key_cache_ptr, value_cache_ptr, table_ptr)
    blocks = look_up(table_ptr, begin, end, BLOCK_SIZE, TILE)
    state = (
        tl.full([BLOCK_M], LOWEST, tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        blocks,
        # There is no tile before the first: zero weights, no visible slots, arbitrary blocks.
        tl.zeros([BLOCK_M, TILE], tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        blocks,
    )
    for part in tl.static_range(0 if SLIDING_WINDOW > 0 else 1, 3):
        state = _attend(
            query,
            cache,
            (bounds[part], bounds[part + 1]),
            seen,
            positions,
            (slopes, score_scale, softcap_log2),
            state,
            kv_head,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_SIZE,
            SLIDING_WINDOW,
            HAS_SOFTCAP,
            HAS_ALIBI,
            TILE,
            LATE_VALUES,
            part != 1,
        )
    maximum, total, accumulator, _, weights, rescale, last_blocks = state
    if LATE_VALUES:
        last = tl.cdiv(end, TILE) * TILE - TILE
        accumulator = _add_values(
            accumulator * rescale[:, None], weights, cache, last_blocks, last, seen, kv_head,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE,
        )  # fmt: skip

    out = accumulator / add_sinks(sinks_ptr, heads, row_mask, maximum, total)[:, None]
    out_offsets = (token[:, None] * (NUM_KV_HEADS * GROUP_SIZE) + heads[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def attend_prefills(
    inputs: AttentionInputs, out: torch.Tensor, first_seq: int, config: PrefillConfig | None = None
) -> None:
    """Writes the rows of out that belong to sequences from first_seq on; those before it have a token each.

    Args:
        first_seq: With inputs.row_counts the least that there can be.
    """
    num_tokens, _, head_dim = inputs.query.shape
    num_seqs = inputs.seq_lens.shape[0]
    if config is None:
        gpu, _ = gpu_traits(inputs.query.device)
        config = prefill_config(gpu, head_dim, inputs.query.element_size())
    constants = _constants(config, inputs.group_size, head_dim, inputs.num_kv_heads, inputs.block_size)
    prefill_attention_kernel[
        ((num_tokens - first_seq) // constants["BLOCK_Q"] + num_seqs - first_seq, inputs.num_kv_heads)
    ](
        inputs.query,
        inputs.key_cache,
        inputs.value_cache,
        inputs.block_tables,
        inputs.query_start_loc,
        inputs.seq_lens,
        inputs.alibi_slopes,
        inputs.sinks,
        inputs.row_counts,
        out,
        inputs.score_scale,
        inputs.softcap_log2,
        first_seq,
        num_seqs,
        inputs.query.stride(0),
        inputs.block_tables.stride(0),
        SLIDING_WINDOW=inputs.sliding_window,
        HAS_SOFTCAP=inputs.logit_softcap > 0,
        **constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


@cache
def _constants(
    config: PrefillConfig, group_size: int, head_dim: int, num_kv_heads: int, block_size: int
) -> dict[str, int]:
    """Returns the kernel's constants that depend on shapes and configuration."""
    block_m = max(config.block_m, triton.next_power_of_2(group_size))
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP_SIZE": group_size,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "BLOCK_Q": block_m // group_size,
        "BLOCK_M": block_m,
        # tl.dot takes at least 16.
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "TILE": tile_for(block_size, config.tile),
        "LATE_VALUES": config.late_values,
    }
