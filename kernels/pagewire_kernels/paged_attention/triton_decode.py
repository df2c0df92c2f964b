"""Decode attention on a GPU: one new token per sequence, the context of a sequence split among programs.

Split-KV ("flash-decoding", pytorch.org/blog/flash-decoding). How a batch is split depends on its
lengths, on how many there are and on the device, and is worked out there, by every program for itself, so that one
captured launch serves any lengths. What the splits of a sequence found is added up by a second launch, in
triton_combine.py.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.traits import gpu_traits
from pagewire_kernels.paged_attention.inputs import AttentionInputs
from pagewire_kernels.paged_attention.shared_prefixes import (
    MAX_SHARED_SPLITS,
    ROW_FIELDS,
    ROW_NUM_SLOTS,
    SharedPrefixes,
)
from pagewire_kernels.paged_attention.triton_combine import MAX_SPLITS, Partials, combine_splits
from pagewire_kernels.paged_attention.triton_shared import attend_shared
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
from pagewire_kernels.tuning.paged_attention import DecodeConfig, SharedConfig, decode_config, tile_for

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_ROW_FIELDS, _ROW_NUM_SLOTS = tl.constexpr(ROW_FIELDS), tl.constexpr(ROW_NUM_SLOTS)
_MAX_SHARED_SPLITS = tl.constexpr(MAX_SHARED_SPLITS)


@triton.jit
def _first_key(shared_rows_ptr, seq, seq_len, SLIDING_WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Returns where the keys begin that a sequence reads itself: behind its shared runs, or at the first tile that its
    last token sees. A multiple of TILE if that divides blocks."""
    first = seq_len * 0
    if SLIDING_WINDOW > 0:
        first = tl.maximum(seq_len - SLIDING_WINDOW, 0) // TILE * TILE
    elif shared_rows_ptr is not None:
        # A void row's runs do not count.
        first = tl.minimum(tl.load(shared_rows_ptr + seq * _ROW_FIELDS, mask=seq_len > 0, other=0), seq_len)
    return first


@triton.jit
def find_split(
    seq_lens_ptr,
    shared_rows_ptr,
    item,
    num_seqs,
    num_shares,
    SLIDING_WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
):
    """Returns (sequence, its first item, its splits, tiles per split) of a work item; sequence num_seqs: no work.

    All tiles of the batch are shared out in num_shares equal shares, a sequence gets as many splits as its tiles fill
    shares, rounded, at least one. So there are at most num_shares + num_seqs items, numbered sequence after sequence.
    """
    seqs = tl.arange(0, BLOCK_SEQS)
    seq_lens = tl.load(seq_lens_ptr + seqs, mask=seqs < num_seqs, other=0)  # [BLOCK_SEQS]
    tiles = tl.cdiv(seq_lens - _first_key(shared_rows_ptr, seqs, seq_lens, SLIDING_WINDOW, TILE), TILE)
    share = tl.maximum(tl.cdiv(tl.sum(tiles), num_shares), MIN_TILES)
    # One program adds up a sequence's splits and what its shared runs leave.
    most = MAX_SPLITS if shared_rows_ptr is None else MAX_SPLITS - _MAX_SHARED_SPLITS
    splits = tl.minimum(tl.maximum((tiles + share // 2) // share, 1), most)
    split_tiles = tl.maximum(tl.cdiv(tiles, splits), 1)
    # Splits that rounding up left empty are dropped; a void row keeps one, which writes its zeros.
    splits = tl.where(seqs < num_seqs, tl.maximum(tl.cdiv(tiles, split_tiles), 1), 0)
    seq, first_item, num_splits, most_tiles = tl.minimum(item, num_seqs), item, 1, tl.max(split_tiles)
    if tl.max(splits) > 1:
        ends = tl.cumsum(splits)
        before = ends <= item
        seq = tl.minimum(tl.sum(before.to(tl.int32)), num_seqs)
        first_item = tl.max(tl.where(before, ends, 0))
        is_mine = seqs == seq
        num_splits = tl.sum(tl.where(is_mine, splits, 0))
        most_tiles = tl.sum(tl.where(is_mine, split_tiles, 0))
    return seq, first_item, num_splits, most_tiles


@triton.jit
def _store_rows(
    out_ptr, values, seq, kv_head, NUM_KV_HEADS: tl.constexpr, GROUP_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """Writes values [BLOCK_M, BLOCK_D], of which GROUP_SIZE rows and HEAD_DIM columns count, to token seq of out."""
    rows = tl.arange(0, values.shape[0])
    dims = tl.arange(0, values.shape[1])
    head = seq.to(tl.int64) * (NUM_KV_HEADS * GROUP_SIZE) + kv_head * GROUP_SIZE + rows
    mask = (rows < GROUP_SIZE)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(out_ptr + head[:, None] * HEAD_DIM + dims[None, :], values.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_seqs", "num_shares"])
def decode_attention_kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    alibi_slopes_ptr,
    sinks_ptr,
    out_ptr,
    sums_ptr,
    stats_ptr,
    splits_ptr,
    row_counts_ptr,
    shared_rows_ptr,
    score_scale,
    softcap_log2,
    num_seqs,
    num_shares,
    stride_query_token,
    stride_table,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (NUM_KV_HEADS, num_seqs + num_shares); one program attends from the GROUP_SIZE query heads of one KV head
    to one split of one sequence. Heads vary fastest: programs that run together read whole rows of the cache.

    Without sums_ptr every sequence is one split. With it, programs of sequences that have several leave their maxima,
    totals and weighted sums as Partials has them. With shared_rows_ptr, the rows of a plan (shared_prefixes.py),
    sequences begin behind what they share, and those that share anything leave partial results too.

    With row_counts_ptr num_seqs is the most that there can be, and the number of decodes is read there.
    """
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    HAS_ALIBI: tl.constexpr = alibi_slopes_ptr is not None
    wait_for_previous(PDL)
    if row_counts_ptr is not None:
        num_seqs = tl.load(row_counts_ptr + 1).to(tl.int32)
        # Items are fewer than this whatever the lengths.
        if item >= num_seqs + num_shares:
            return
    seq, first_item, num_splits, begin = item, item, 1, 0
    if sums_ptr is not None:
        seq, first_item, num_splits, split_tiles = find_split(
            seq_lens_ptr, shared_rows_ptr, item, num_seqs, num_shares, SLIDING_WINDOW, TILE, MIN_TILES, MAX_SPLITS,
            BLOCK_SEQS,
        )  # fmt: skip
        if seq == num_seqs:
            return
    seq_len = tl.load(seq_lens_ptr + seq)
    is_whole = num_splits == 1
    if shared_rows_ptr is not None:
        num_slots = tl.load(shared_rows_ptr + seq * _ROW_FIELDS + _ROW_NUM_SLOTS)
        is_whole = is_whole & ((num_slots == 0) | (seq_len == 0))
    begin = _first_key(shared_rows_ptr, seq, seq_len, SLIDING_WINDOW, TILE)
    end = seq_len
    if sums_ptr is not None:
        if item == first_item:
            # The programs of all heads store the same values.
            tl.store(splits_ptr + 2 * seq, first_item)
            tl.store(splits_ptr + 2 * seq + 1, tl.where(is_whole, 0, num_splits))
        begin += (item - first_item) * split_tiles * TILE
        end = tl.minimum(begin + split_tiles * TILE, seq_len)

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    heads = kv_head * GROUP_SIZE + rows
    row_mask = rows < GROUP_SIZE
    dim_mask = dims < HEAD_DIM
    mask = row_mask[:, None] & dim_mask[None, :]
    query_offsets = seq.to(tl.int64) * stride_query_token + heads[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(query_ptr + query_offsets, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_D]
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if HAS_ALIBI:
        slopes = tl.load(alibi_slopes_ptr + heads, mask=row_mask, other=0.0).to(tl.float32) * LOG2_E
    factor = score_factor(score_scale, HAS_SOFTCAP, HAS_ALIBI)
    table_ptr = block_tables_ptr + seq.to(tl.int64) * stride_table

    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    # Totals are kept by column until the end, which saves a sum across warps for each tile.
    totals = tl.zeros([BLOCK_M, TILE], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    blocks = look_up(table_ptr, begin, end, BLOCK_SIZE, TILE)
    for start in range(begin, end, TILE):
        # [TILE, BLOCK_D]
        offsets = tile_offsets(blocks, start, kv_head, dims, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        blocks = look_up(table_ptr, start + TILE, end, BLOCK_SIZE, TILE)
        keys = start + tl.arange(0, TILE)
        visible = keys < end
        if SLIDING_WINDOW > 0:
            visible = visible & (keys >= seq_len - SLIDING_WINDOW)
        # Slots of keys that are not visible may hold NaN.
        key_mask = visible[:, None] & dim_mask[None, :]
        key = tl.load(key_cache_ptr + offsets, mask=key_mask, other=0.0)  # [TILE, BLOCK_D]
        products = tl.dot(query, tl.trans(key), input_precision="ieee")  # [BLOCK_M, TILE]
        distance = (seq_len - 1 - keys)[None, :]
        scores = shape_scores(products, distance, slopes, score_scale, softcap_log2, HAS_SOFTCAP, HAS_ALIBI)
        scores = tl.where(visible[None, :], scores, float("-inf"))
        maximum, weights, rescale = softmax_step(scores, factor, maximum)
        totals = totals * rescale[:, None] + weights
        value = tl.load(value_cache_ptr + offsets, mask=key_mask, other=0.0)  # [TILE, BLOCK_D]
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
    release_next(PDL)
    total = tl.sum(totals, axis=1)

    if is_whole:
        total = add_sinks(sinks_ptr, heads, row_mask, maximum, total)
        _store_rows(out_ptr, accumulator / total[:, None], seq, kv_head, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM)
    elif sums_ptr is not None:
        partial = (item * NUM_KV_HEADS + kv_head).to(tl.int64)
        is_kept = rows < BLOCK_G
        row_stats_ptr = stats_ptr + partial * (2 * BLOCK_G) + rows
        tl.store(row_stats_ptr, maximum, mask=is_kept)
        tl.store(row_stats_ptr + BLOCK_G, total, mask=is_kept)
        cells = rows[:, None] * BLOCK_D + dims[None, :]
        tl.store(sums_ptr + partial * (BLOCK_G * BLOCK_D) + cells, accumulator, mask=is_kept[:, None])


def attend_decodes(
    inputs: AttentionInputs,
    out: torch.Tensor,
    num_decodes: int,
    config: DecodeConfig | None = None,
    shared_config: SharedConfig | None = None,
) -> None:
    """Writes the first num_decodes rows of out: token i is sequence i's one new token.

    Args:
        num_decodes: With inputs.row_counts the most that there can be.
    """
    head_dim = inputs.query.shape[2]
    device = inputs.query.device
    gpu, num_multiprocessors = gpu_traits(device)
    shared = _shared(inputs, num_decodes)
    if config is None:
        config = decode_config(gpu, head_dim, inputs.query.element_size(), is_shared=shared is not None)
    constants = _constants(config, inputs.group_size, head_dim, inputs.num_kv_heads, inputs.block_size)
    tile, block_g, block_d = (int(constants[name]) for name in ("TILE", "BLOCK_G", "BLOCK_D"))
    reach = min(inputs.max_seq_len, inputs.sliding_window + tile) if inputs.sliding_window else inputs.max_seq_len
    # Most shares that the longest sequences could fill beyond one each.
    num_shares = num_decodes * (triton.cdiv(reach, tile * config.min_split_tiles) - 1)
    num_shares = max(0, min(num_shares, num_multiprocessors * config.programs_per_sm // inputs.num_kv_heads))
    if shared:
        num_shares = max(num_shares, 1)
    num_items = num_decodes + num_shares
    partials: Partials | None = None
    if num_shares > 0 or shared:
        num_partials = num_items + (shared.layout.max_slots if shared else 0)
        partials = Partials.empty(num_partials, num_decodes, inputs.num_kv_heads, block_g, block_d, device)
    if partials and shared:
        attend_shared(inputs, shared, partials, num_items, shared_config)
    decode_attention_kernel[(inputs.num_kv_heads, num_items)](
        inputs.query,
        inputs.key_cache,
        inputs.value_cache,
        inputs.block_tables,
        inputs.seq_lens,
        inputs.alibi_slopes,
        inputs.sinks,
        out,
        *((partials.sums, partials.stats, partials.splits) if partials else (None, None, None)),
        inputs.row_counts,
        shared.rows if shared else None,
        inputs.score_scale,
        inputs.softcap_log2,
        num_decodes,
        num_shares,
        inputs.query.stride(0),
        inputs.block_tables.stride(0),
        SLIDING_WINDOW=inputs.sliding_window,
        HAS_SOFTCAP=inputs.logit_softcap > 0,
        BLOCK_SEQS=block_seqs(num_decodes, is_small=inputs.row_counts is None and shared is None),
        **constants,
        **launch_options(device),
        num_warps=_num_warps(config, int(constants["BLOCK_M"])),
        num_stages=config.num_stages,
    )
    if partials:
        combine_splits(inputs, out, partials, shared, num_items)


def _shared(inputs: AttentionInputs, num_decodes: int) -> SharedPrefixes | None:
    """Returns the plan if it is to be used."""
    shared = inputs.shared
    if shared is None or inputs.sliding_window:
        return None
    if num_decodes > shared.layout.max_rows:
        raise ValueError(f"the plan of shared prefixes has {shared.layout.max_rows} rows, the batch {num_decodes}")
    return shared


@cache
def _constants(
    config: DecodeConfig, group_size: int, head_dim: int, num_kv_heads: int, block_size: int
) -> dict[str, int]:
    """Returns the kernel's constants that depend on shapes and configuration."""
    block_g = triton.next_power_of_2(group_size)
    # tl.dot takes at least 16 rows and columns.
    block_d = max(16, triton.next_power_of_2(head_dim))
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP_SIZE": group_size,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "BLOCK_M": max(16, block_g),
        "BLOCK_G": block_g,
        "BLOCK_D": block_d,
        "TILE": tile_for(block_size, config.tile),
        "MIN_TILES": config.min_split_tiles,
        "MAX_SPLITS": MAX_SPLITS,
    }


def _num_warps(config: DecodeConfig, block_m: int) -> int:
    """Returns more warps for many heads that share a KV head: 128 rows spill the registers of 4 warps."""
    return max(config.num_warps, block_m // 16)


def block_seqs(num_seqs: int, is_small: bool = False) -> int:
    """Returns num_seqs rounded up to one of few sizes, since each size needs a compilation.

    Args:
        is_small: Whether a size for few sequences is worth one: for plain decodes, most of all for a single one.
    """
    sizes = (32, 256, 1024) if is_small else (256, 1024)
    return next((size for size in sizes if num_seqs <= size), triton.next_power_of_2(num_seqs))
