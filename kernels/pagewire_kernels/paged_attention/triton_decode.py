"""Decode attention on a GPU: one new token per sequence, the context of a sequence split among programs.

Split-KV ("flash-decoding", pytorch.org/blog/flash-decoding). How a batch is split depends on the lengths alone and is
worked out on the device, by every program for itself, so that one captured launch serves any lengths.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from pagewire_kernels.aot_case import AotCase
from pagewire_kernels.paged_attention.inputs import AttentionInputs, gpu_traits
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
from pagewire_kernels.tuning.paged_attention import DecodeConfig, decode_config, tile_for

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_MAX_SPLITS = 64
"""Of one sequence: what one program adds up in a few rounds of loads."""
_ROUND_ELEMENTS = 8192
"""Partial results a program has in flight while it adds them up: 64 registers of each of 128 threads."""
_MIN_ARRIVALS = 65536


@triton.jit
def _first_tile(seq_len, SLIDING_WINDOW: tl.constexpr, TILE: tl.constexpr):
    """The first tile of keys that the sequence's last token sees."""
    first = seq_len * 0
    if SLIDING_WINDOW > 0:
        first = tl.maximum(seq_len - SLIDING_WINDOW, 0) // TILE
    return first


@triton.jit
def _find_split(
    seq_lens_ptr,
    item,
    num_seqs,
    num_shares,
    SLIDING_WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
):
    """(sequence, its first item, its number of splits, tiles per split) of a work item; sequence num_seqs: no work.

    All tiles of the batch are shared out in num_shares equal shares, a sequence gets as many splits as its tiles fill
    shares, rounded, at least one. So there are at most num_shares + num_seqs items, numbered sequence after sequence.
    """
    seqs = tl.arange(0, BLOCK_SEQS)
    seq_lens = tl.load(seq_lens_ptr + seqs, mask=seqs < num_seqs, other=0)  # [BLOCK_SEQS]
    tiles = tl.cdiv(seq_lens, TILE) - _first_tile(seq_lens, SLIDING_WINDOW, TILE)
    share = tl.maximum(tl.cdiv(tl.sum(tiles), num_shares), MIN_TILES)
    splits = tl.minimum(tl.maximum((tiles + share // 2) // share, 1), MAX_SPLITS)
    split_tiles = tl.maximum(tl.cdiv(tiles, splits), 1)
    # Without splits that rounding up left empty; a void row keeps one, which writes its zeros.
    splits = tl.where(seqs < num_seqs, tl.maximum(tl.cdiv(tiles, split_tiles), 1), 0)
    ends = tl.cumsum(splits)
    before = ends <= item
    seq = tl.minimum(tl.sum(before.to(tl.int32)), num_seqs)
    first_item = tl.max(tl.where(before, ends, 0))
    is_mine = seqs == seq
    num_splits = tl.sum(tl.where(is_mine, splits, 0))
    return seq, first_item, num_splits, tl.sum(tl.where(is_mine, split_tiles, 0))


@triton.jit
def _add_splits(
    partial_out_ptr,
    partial_stats_ptr,
    first,
    num_splits,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """(maximum [BLOCK_G], total [BLOCK_G], weighted sum [BLOCK_G, BLOCK_D]) of the splits from partial `first` on.

    .cg: other multiprocessors wrote these, the first-level cache must not answer for them.
    """
    rows = tl.arange(0, BLOCK_G)
    cells = rows[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    splits = tl.arange(0, MAX_SPLITS)
    is_split = (splits < num_splits)[:, None]
    stats = (first + splits * NUM_KV_HEADS).to(tl.int64)[:, None] * (2 * BLOCK_G) + rows[None, :]
    maxima = tl.load(partial_stats_ptr + stats, mask=is_split, other=LOWEST, cache_modifier=".cg")
    totals = tl.load(partial_stats_ptr + stats + BLOCK_G, mask=is_split, other=0.0, cache_modifier=".cg")
    maximum = tl.max(maxima, axis=0)
    total = tl.sum(totals * tl.exp2(maxima - maximum[None, :]), axis=0)
    accumulator = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in range(0, num_splits, ROUND):
        some = start + tl.arange(0, ROUND)
        is_one = some < num_splits
        partial = (first + some * NUM_KV_HEADS).to(tl.int64)  # [ROUND]
        some_maxima = tl.load(
            partial_stats_ptr + partial[:, None] * (2 * BLOCK_G) + rows[None, :],
            mask=is_one[:, None],
            other=LOWEST,
            cache_modifier=".cg",
        )
        weights = tl.exp2(some_maxima - maximum[None, :])  # [ROUND, BLOCK_G]
        values = tl.load(
            partial_out_ptr + partial[:, None, None] * (BLOCK_G * BLOCK_D) + cells[None, :, :],
            mask=is_one[:, None, None],
            other=0.0,
            cache_modifier=".cg",
        )  # [ROUND, BLOCK_G, BLOCK_D]
        accumulator += tl.sum(values * weights[:, :, None], axis=0)
    return maximum, total, accumulator


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
def _kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    alibi_slopes_ptr,
    sinks_ptr,
    out_ptr,
    partial_out_ptr,
    partial_stats_ptr,
    arrivals_ptr,
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
    ROUND: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
):
    """Grid: (NUM_KV_HEADS, num_seqs + num_shares); one program attends from the GROUP_SIZE query heads of one KV head
    to one split of one sequence. Heads vary fastest: programs that run together read whole rows of the cache.

    Without partial_out_ptr every sequence is one split. With it, a program leaves its maximum, total and weighted sum
    there, and the one that arrives last of its sequence and head adds them up.
    """
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    HAS_ALIBI: tl.constexpr = alibi_slopes_ptr is not None
    seq, first_item, num_splits, begin = item, item, 1, 0
    if partial_out_ptr is not None:
        seq, first_item, num_splits, split_tiles = _find_split(
            seq_lens_ptr, item, num_seqs, num_shares, SLIDING_WINDOW, TILE, MIN_TILES, MAX_SPLITS, BLOCK_SEQS
        )
        if seq == num_seqs:
            return
    seq_len = tl.load(seq_lens_ptr + seq)
    begin = _first_tile(seq_len, SLIDING_WINDOW, TILE) * TILE
    end = seq_len
    if partial_out_ptr is not None:
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
    # Totals stay apart by column until the end: a sum across warps less for each tile.
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
    total = tl.sum(totals, axis=1)

    if num_splits == 1:
        total = add_sinks(sinks_ptr, heads, row_mask, maximum, total)
        _store_rows(out_ptr, accumulator / total[:, None], seq, kv_head, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM)
    elif partial_out_ptr is not None:
        partial = (item * NUM_KV_HEADS + kv_head).to(tl.int64)
        is_kept = rows < BLOCK_G
        stats_ptr = partial_stats_ptr + partial * (2 * BLOCK_G) + rows
        tl.store(stats_ptr, maximum, mask=is_kept)
        tl.store(stats_ptr + BLOCK_G, total, mask=is_kept)
        cells = rows[:, None] * BLOCK_D + dims[None, :]
        tl.store(partial_out_ptr + partial * (BLOCK_G * BLOCK_D) + cells, accumulator, mask=is_kept[:, None])
        # All threads have written before one of them says so; who reads after the last arrival sees all of it.
        tl.debug_barrier()
        arrival_ptr = arrivals_ptr + seq * NUM_KV_HEADS + kv_head
        if tl.atomic_add(arrival_ptr, 1, sem="acq_rel", scope="gpu") == num_splits - 1:
            # As the next launch wants to find it.
            tl.store(arrival_ptr, 0)
            first = first_item * NUM_KV_HEADS + kv_head
            all_maximum, all_total, all_values = _add_splits(
                partial_out_ptr, partial_stats_ptr, first, num_splits, NUM_KV_HEADS, BLOCK_G, BLOCK_D, MAX_SPLITS, ROUND
            )
            group = tl.arange(0, BLOCK_G)
            all_total = add_sinks(sinks_ptr, kv_head * GROUP_SIZE + group, group < GROUP_SIZE, all_maximum, all_total)
            _store_rows(out_ptr, all_values / all_total[:, None], seq, kv_head, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM)


def attend_decodes(inputs: AttentionInputs, num_decodes: int, config: DecodeConfig | None = None) -> None:
    """Writes the first num_decodes rows of inputs.out: token i is sequence i's one new token.

    Not for two streams of one device at a time: launches share the counters of arrivals.
    """
    head_dim = inputs.query.shape[2]
    device = inputs.query.device
    gpu, num_multiprocessors = gpu_traits(device)
    if config is None:
        config = decode_config(gpu, head_dim, inputs.query.element_size())
    constants = _constants(config, inputs.group_size, head_dim, inputs.num_kv_heads, inputs.block_size)
    tile, block_g, block_d = (int(constants[name]) for name in ("TILE", "BLOCK_G", "BLOCK_D"))
    reach = min(inputs.max_seq_len, inputs.sliding_window + tile) if inputs.sliding_window else inputs.max_seq_len
    # Shares that the longest sequences could fill beyond one each.
    num_shares = num_decodes * (triton.cdiv(reach, tile * config.min_split_tiles) - 1)
    num_shares = max(0, min(num_shares, num_multiprocessors * config.programs_per_sm // inputs.num_kv_heads))
    num_items = num_decodes + num_shares
    # Made by whatever runs first, split or not: by the time a graph is captured, it is there.
    arrivals = _arrivals(device, triton.next_power_of_2(max(_MIN_ARRIVALS, num_decodes * inputs.num_kv_heads)))
    scratch: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None)
    if num_shares > 0:
        num_partials = num_items * inputs.num_kv_heads * block_g
        partials = torch.empty(num_partials * (block_d + 2), dtype=torch.float32, device=device)
        scratch = (
            partials[: num_partials * block_d],
            partials[num_partials * block_d :],
            arrivals,
        )
    _kernel[(inputs.num_kv_heads, num_items)](
        inputs.query,
        inputs.key_cache,
        inputs.value_cache,
        inputs.block_tables,
        inputs.seq_lens,
        inputs.alibi_slopes,
        inputs.sinks,
        inputs.out,
        *scratch,
        inputs.score_scale,
        inputs.softcap_log2,
        num_decodes,
        num_shares,
        inputs.query.stride(0),
        inputs.block_tables.stride(0),
        SLIDING_WINDOW=inputs.sliding_window,
        HAS_SOFTCAP=inputs.logit_softcap > 0,
        BLOCK_SEQS=_block_seqs(num_decodes),
        **constants,
        num_warps=_num_warps(config, int(constants["BLOCK_M"])),
        num_stages=config.num_stages,
    )


@cache
def _constants(
    config: DecodeConfig, group_size: int, head_dim: int, num_kv_heads: int, block_size: int
) -> dict[str, int]:
    """The kernel's constants that shapes and configuration decide."""
    block_g = triton.next_power_of_2(group_size)
    # 16 rows and columns are the least tl.dot takes.
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
        "MAX_SPLITS": _MAX_SPLITS,
        "ROUND": min(_MAX_SPLITS, max(1, _ROUND_ELEMENTS // (block_g * block_d))),
    }


def _num_warps(config: DecodeConfig, block_m: int) -> int:
    """More of them for many heads that share a KV head: 128 rows spill the registers of 4 warps."""
    return max(config.num_warps, block_m // 16)


def _block_seqs(num_seqs: int) -> int:
    """Room for num_seqs lengths, in few sizes: each is a compilation."""
    return next((size for size in (32, 256) if num_seqs <= size), triton.next_power_of_2(num_seqs))


@cache
def _arrivals(device: torch.device, size: int) -> torch.Tensor:
    """Zeros that every launch leaves as zeros: how many splits of a sequence and head have arrived.

    Raises:
        RuntimeError: in a graph's capture, whose memory is the graph's own. Run once before capturing.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("the first decode attention of a process cannot be captured: run one before")
    arrivals = torch.zeros(size, dtype=torch.int32, device=device)
    if device.type == "cuda":
        # Whatever stream uses it next finds zeros.
        torch.cuda.current_stream(device).synchronize()
    return arrivals


def _aot_case(
    name: str,
    *,
    target: int = 90,
    dtype: str = "bf16",
    head_dim: int = 128,
    block_size: int = 64,
    group_size: int = 4,
    sliding_window: int = 0,
    all_options: bool = False,
    splits: bool = True,
) -> AotCase:
    config = decode_config(target, head_dim, 4 if dtype == "fp32" else 2)
    per_head = {"alibi_slopes_ptr": "*fp32", "sinks_ptr": "*fp32"}
    scratch = {"partial_out_ptr": "*fp32", "partial_stats_ptr": "*fp32", "arrivals_ptr": "*i32"}
    signature = dict.fromkeys(("query_ptr", "key_cache_ptr", "value_cache_ptr", "out_ptr"), f"*{dtype}")
    signature |= {"block_tables_ptr": "*i32", "seq_lens_ptr": "*i32", "score_scale": "fp32", "softcap_log2": "fp32"}
    signature |= dict.fromkeys(("num_seqs", "num_shares", "stride_query_token", "stride_table"), "i32")
    constants: dict[str, object] = {"SLIDING_WINDOW": sliding_window, "HAS_SOFTCAP": all_options}
    constants["BLOCK_SEQS"] = _block_seqs(256)
    for optional, is_given in ((per_head, all_options), (scratch, splits)):
        if is_given:
            signature |= optional
        else:
            constants |= dict.fromkeys(optional)
    shape = _constants(config, group_size, head_dim, 8, block_size)
    return AotCase(
        name=name,
        kernel=_kernel,
        signature=signature,
        constexprs=constants | shape,
        num_warps=_num_warps(config, int(shape["BLOCK_M"])),
        num_stages=config.num_stages,
        divisible=("stride_query_token",),
        targets=(target,),
    )


AOT_CASES = (
    *(
        _aot_case(f"head{head_dim}-bf16-sm{target}", target=target, head_dim=head_dim)
        for target in (90, 80, 100)
        for head_dim in (128, 64, 256)
    ),
    _aot_case("head128-bf16-whole", splits=False),
    _aot_case("head128-fp16", dtype="fp16"),
    _aot_case("head128-fp32", dtype="fp32"),
    _aot_case("head128-bf16-block16", block_size=16),
    _aot_case("head128-bf16-group16", group_size=16),
    _aot_case("head64-bf16-group71", head_dim=64, group_size=71),
    _aot_case("head80-bf16-group1", head_dim=80, group_size=1),
    _aot_case("head128-bf16-all-options", sliding_window=4096, all_options=True),
)
