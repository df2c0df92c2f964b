"""The runs of keys that decodes of a batch share, on a GPU: each is read once for all of its rows.

The first of three launches of decode attention with a plan (shared_prefixes.py): it leaves partial results, to which
triton_decode.py adds those of each row's own keys and which triton_combine.py adds up.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.traits import gpu_traits
from pagewire_kernels.paged_attention.inputs import AttentionInputs
from pagewire_kernels.paged_attention.shared_prefixes import (
    ITEM_BEGIN,
    ITEM_END,
    ITEM_FIELDS,
    ITEM_FIRST_ENTRY,
    ITEM_NUM_ROWS,
    ITEM_PIECE,
    ITEM_TABLE,
    PlanLayout,
    SharedPrefixes,
)
from pagewire_kernels.paged_attention.triton_combine import Partials
from pagewire_kernels.paged_attention.triton_tile import (
    LOG2_E,
    LOWEST,
    look_up,
    score_factor,
    shape_scores,
    softmax_step,
    tile_offsets,
)
from pagewire_kernels.tuning.paged_attention import SharedConfig, shared_config, tile_for

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_FIELDS = tl.constexpr(ITEM_FIELDS)
_TABLE, _BEGIN, _END = tl.constexpr(ITEM_TABLE), tl.constexpr(ITEM_BEGIN), tl.constexpr(ITEM_END)
_FIRST_ENTRY, _NUM_ROWS = tl.constexpr(ITEM_FIRST_ENTRY), tl.constexpr(ITEM_NUM_ROWS)
_PIECE = tl.constexpr(ITEM_PIECE)


@triton.jit
def _attend_run(
    query,
    cache,
    begin,
    end,
    positions,
    scoring,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    TILE: tl.constexpr,
):
    """Returns maxima [BLOCK_M], totals [BLOCK_M] and weighted sums [BLOCK_M, BLOCK_D] over keys begin to end, all of
    which every row sees."""
    BLOCK_M: tl.constexpr = query.shape[0]
    # Tiles that divide blocks divide runs of blocks; others end with keys that are not the run's.
    IS_WHOLE: tl.constexpr = BLOCK_SIZE % TILE == 0
    key_cache_ptr, value_cache_ptr, table_ptr = cache
    slopes, score_scale, softcap_log2 = scoring
    dims = tl.arange(0, BLOCK_D)
    factor = score_factor(score_scale, HAS_SOFTCAP, HAS_ALIBI)
    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    blocks = look_up(table_ptr, begin, end, BLOCK_SIZE, TILE)
    for start in range(begin, end, TILE):
        # [TILE, BLOCK_D]
        offsets = tile_offsets(blocks, start, kv_head, dims, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        blocks = look_up(table_ptr, start + TILE, end, BLOCK_SIZE, TILE)
        keys = start + tl.arange(0, TILE)
        key_mask = (keys < end)[:, None] & (dims < HEAD_DIM)[None, :]
        if IS_WHOLE and HEAD_DIM == BLOCK_D:
            key = tl.load(key_cache_ptr + offsets)
        else:
            key = tl.load(key_cache_ptr + offsets, mask=key_mask, other=0.0)
        products = tl.dot(query, tl.trans(key), input_precision="ieee")  # [BLOCK_M, TILE]
        distance = positions[:, None] - keys[None, :]
        scores = shape_scores(products, distance, slopes, score_scale, softcap_log2, HAS_SOFTCAP, HAS_ALIBI)
        if not IS_WHOLE:
            scores = tl.where((keys < end)[None, :], scores, float("-inf"))
        maximum, weights, rescale = softmax_step(scores, factor, maximum)
        total = total * rescale + tl.sum(weights, axis=1)
        if IS_WHOLE and HEAD_DIM == BLOCK_D:
            value = tl.load(value_cache_ptr + offsets)
        else:
            value = tl.load(value_cache_ptr + offsets, mask=key_mask, other=0.0)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
    return maximum, total, accumulator


@triton.jit(do_not_specialize=["first_partial"])
def shared_attention_kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    alibi_slopes_ptr,
    shares_ptr,
    items_ptr,
    entries_ptr,
    sums_ptr,
    stats_ptr,
    score_scale,
    softcap_log2,
    first_partial,
    stride_query_token,
    stride_table,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (NUM_KV_HEADS, num_shares); one program works off one share of the plan for one KV head.

    An item is BLOCK_M // GROUP_SIZE rows, each with the GROUP_SIZE query heads of the KV head, over a range of keys:
    row m of the tile is row m // GROUP_SIZE, head m % GROUP_SIZE. Slot s of the plan is partial first_partial + s.
    """
    kv_head = tl.program_id(0)
    share = tl.program_id(1)
    HAS_ALIBI: tl.constexpr = alibi_slopes_ptr is not None
    tile_rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    group_row = tile_rows % GROUP_SIZE
    heads = kv_head * GROUP_SIZE + group_row
    wait_for_previous(PDL)
    for item in range(tl.load(shares_ptr + share), tl.load(shares_ptr + share + 1)):
        item_ptr = items_ptr + item * _FIELDS
        begin = tl.load(item_ptr + _BEGIN)
        end = tl.load(item_ptr + _END)
        is_row = tile_rows // GROUP_SIZE < tl.load(item_ptr + _NUM_ROWS)
        entry_ptr = entries_ptr + 2 * (tl.load(item_ptr + _FIRST_ENTRY) + tile_rows // GROUP_SIZE)
        row = tl.load(entry_ptr, mask=is_row, other=0)  # [BLOCK_M]
        query_offsets = row.to(tl.int64)[:, None] * stride_query_token + heads[:, None] * HEAD_DIM + dims[None, :]
        query_mask = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        query = tl.load(query_ptr + query_offsets, mask=query_mask, other=0.0)  # [BLOCK_M, BLOCK_D]
        slopes = tl.zeros([BLOCK_M], tl.float32)
        positions = tl.zeros([BLOCK_M], tl.int32)
        if HAS_ALIBI:
            slopes = tl.load(alibi_slopes_ptr + heads, mask=is_row, other=0.0).to(tl.float32) * LOG2_E
            positions = tl.load(seq_lens_ptr + row, mask=is_row, other=1) - 1
        table_ptr = block_tables_ptr + tl.load(item_ptr + _TABLE).to(tl.int64) * stride_table
        maximum, total, accumulator = _attend_run(
            query,
            (key_cache_ptr, value_cache_ptr, table_ptr),
            begin,
            end,
            positions,
            (slopes, score_scale, softcap_log2),
            kv_head,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_SIZE,
            HAS_SOFTCAP,
            HAS_ALIBI,
            TILE,
        )
        slot = tl.load(entry_ptr + 1, mask=is_row, other=0) + tl.load(item_ptr + _PIECE)
        partial = (first_partial + slot).to(tl.int64) * NUM_KV_HEADS + kv_head
        row_stats_ptr = stats_ptr + partial * (2 * BLOCK_G) + group_row
        tl.store(row_stats_ptr, maximum, mask=is_row)
        tl.store(row_stats_ptr + BLOCK_G, total, mask=is_row)
        cells = (partial * BLOCK_G + group_row)[:, None] * BLOCK_D + dims[None, :]
        tl.store(sums_ptr + cells, accumulator, mask=is_row[:, None])
    release_next(PDL)


def plan_layout(
    device: torch.device,
    max_rows: int,
    *,
    num_kv_heads: int,
    group_size: int,
    head_dim: int,
    element_bytes: int,
    block_size: int,
    config: SharedConfig | None = None,
) -> PlanLayout:
    """Returns the layout of plans for attention of this shape, in batches of at most max_rows decodes."""
    gpu, num_multiprocessors = gpu_traits(device)
    config = config or shared_config(gpu, head_dim, element_bytes)
    return PlanLayout(
        max_rows=max_rows,
        rows_per_tile=max(1, config.block_m // group_size),
        num_shares=max(1, num_multiprocessors * config.programs_per_sm // num_kv_heads),
        tile=tile_for(block_size, config.tile),
    )


def attend_shared(
    inputs: AttentionInputs,
    shared: SharedPrefixes,
    partials: Partials,
    first_partial: int,
    config: SharedConfig | None = None,
) -> None:
    """Writes the partial results of the plan's slots, from first_partial on."""
    head_dim = inputs.query.shape[2]
    device = inputs.query.device
    if config is None:
        config = shared_config(gpu_traits(device)[0], head_dim, inputs.query.element_size())
    constants = _constants(config, inputs.group_size, head_dim, inputs.num_kv_heads, inputs.block_size)
    if shared.layout.rows_per_tile * inputs.group_size > constants["BLOCK_M"]:
        raise ValueError(f"tiles of {shared.layout.rows_per_tile} rows do not fit {constants['BLOCK_M']} query heads")
    shared_attention_kernel[(inputs.num_kv_heads, shared.layout.num_shares)](
        inputs.query,
        inputs.key_cache,
        inputs.value_cache,
        shared.block_tables,
        inputs.seq_lens,
        inputs.alibi_slopes,
        shared.shares,
        shared.items,
        shared.entries,
        partials.sums,
        partials.stats,
        inputs.score_scale,
        inputs.softcap_log2,
        first_partial,
        inputs.query.stride(0),
        shared.block_tables.stride(0),
        HAS_SOFTCAP=inputs.logit_softcap > 0,
        **constants,
        **launch_options(device),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


@cache
def _constants(
    config: SharedConfig, group_size: int, head_dim: int, num_kv_heads: int, block_size: int
) -> dict[str, int]:
    """Returns the kernel's constants that depend on shapes and configuration."""
    block_g = triton.next_power_of_2(group_size)
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP_SIZE": group_size,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "BLOCK_M": max(config.block_m, block_g),
        "BLOCK_G": block_g,
        # tl.dot takes at least 16.
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "TILE": tile_for(block_size, config.tile),
    }
