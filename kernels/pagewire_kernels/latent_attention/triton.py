"""latent_attention on a GPU: decodes with the context of a sequence split among programs, prefills by tiles of queries.

All heads read the same latents, as keys and as values: a program takes up to 32 heads, loads a tile of latents once and
multiplies it twice. Splitting, and adding up what the splits found, is paged_attention's (triton_decode.py).
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.traits import gpu_traits
from pagewire_kernels.latent_attention.inputs import LatentInputs
from pagewire_kernels.paged_attention.triton_combine import MAX_SPLITS, Partials, combine_splits_kernel
from pagewire_kernels.paged_attention.triton_decode import block_seqs, find_split
from pagewire_kernels.paged_attention.triton_prefill import find_sequence
from pagewire_kernels.paged_attention.triton_tile import LOWEST, look_up, softmax_step
from pagewire_kernels.tuning.paged_attention import tile_for

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_LOG2_E = 1.4426950408889634
_MAX_ROWS = 32
"""Most rows, heads times queries, of a program: with 64, which wgmma takes, 128 heads measured slower."""
_VECTOR = 8
"""Elements of 2 bytes that are loaded at once. With parts of other widths loads end in misaligned addresses."""
_GENERATIONS = (80, 90, 100)
"""Those of data centres, whose programs have 160 KB of shared memory and more."""
_COMBINED_SPLITS = 8
"""Partial results that a program of the second launch loads at once: for latents of 512, 32 registers of a thread."""


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """How one program works, and how many of them a batch of decodes is shared out to."""

    tile: int
    """Most tokens that are loaded at once."""
    num_stages: int
    num_warps: int = 4
    programs_per_sm: int = 1
    min_split_tiles: int = 4
    """Tiles below which a split costs more than it saves."""


HALF = LatentConfig(tile=32, num_stages=3, programs_per_sm=2)
"""For elements of 2 bytes and as many heads as one program takes: bound by memory. A tile of 576 of them is 36 KB."""
HALF_MANY = LatentConfig(tile=64, num_stages=2)
"""For more heads, and for prefills: bound by tensor cores."""
HALF_SMALL = LatentConfig(tile=32, num_stages=2, num_warps=8)
"""For GPUs whose programs have less than 160 KB of shared memory."""
FLOAT = LatentConfig(tile=16, num_stages=1, num_warps=8)
"""For float32, which is for comparisons, not for speed."""


@triton.jit
def _token_pointers(cache_ptr, blocks, start, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """[TILE, 1]: where tokens start .. start + TILE - 1 begin, whose blocks look_up found."""
    rows = tl.arange(0, TILE)
    blocks = blocks.to(tl.int64)
    if BLOCK_SIZE % TILE == 0:
        # One address and small offsets take fewer registers than addresses.
        pointers = cache_ptr + (blocks * BLOCK_SIZE + start % BLOCK_SIZE) * WIDTH + (rows * WIDTH)[:, None]
    else:
        pointers = cache_ptr + ((blocks * BLOCK_SIZE + (start + rows) % BLOCK_SIZE) * WIDTH)[:, None]
    return pointers


@triton.jit
def _attend(
    query_latent,
    query_rope,
    cache_ptr,
    table_ptr,
    begin,
    end,
    positions,
    score_scale,
    LATENT_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
):
    """Returns maxima [BLOCK_M], totals [BLOCK_M] and weighted sums of latents [BLOCK_M, BLOCK_L] over tokens begin to
    end; with IS_CAUSAL over those up to each row's position."""
    BLOCK_M: tl.constexpr = query_latent.shape[0]
    BLOCK_L: tl.constexpr = query_latent.shape[1]
    BLOCK_R: tl.constexpr = query_rope.shape[1]
    WIDTH: tl.constexpr = LATENT_DIM + ROPE_DIM
    latent_dims = tl.arange(0, BLOCK_L)
    rope_dims = tl.arange(0, BLOCK_R)
    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_L], tl.float32)
    blocks = look_up(table_ptr, begin, end, BLOCK_SIZE, TILE)
    for start in range(begin, end, TILE):
        tokens = start + tl.arange(0, TILE)
        # Slots that hold no token of the sequence may hold NaN.
        is_token = tokens < end
        token_ptr = _token_pointers(cache_ptr, blocks, start, WIDTH, BLOCK_SIZE, TILE)
        blocks = look_up(table_ptr, start + TILE, end, BLOCK_SIZE, TILE)
        latent_mask, rope_mask = is_token[:, None], is_token[:, None]
        if LATENT_DIM != BLOCK_L:
            latent_mask = latent_mask & (latent_dims < LATENT_DIM)[None, :]
        if ROPE_DIM != BLOCK_R:
            rope_mask = rope_mask & (rope_dims < ROPE_DIM)[None, :]
        latent = tl.load(token_ptr + latent_dims[None, :], mask=latent_mask, other=0.0)  # [TILE, BLOCK_L]
        rope = tl.load(token_ptr + LATENT_DIM + rope_dims[None, :], mask=rope_mask, other=0.0)  # [TILE, BLOCK_R]
        scores = tl.dot(query_latent, tl.trans(latent), input_precision="ieee")  # [BLOCK_M, TILE]
        scores = tl.dot(query_rope, tl.trans(rope), scores, input_precision="ieee")
        visible = is_token[None, :]
        if IS_CAUSAL:
            visible = visible & (tokens[None, :] <= positions[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        maximum, weights, rescale = softmax_step(scores, score_scale, maximum)
        total = total * rescale + tl.sum(weights, axis=1)
        accumulator = tl.dot(weights.to(latent.dtype), latent, accumulator * rescale[:, None], input_precision="ieee")
    return maximum, total, accumulator


@triton.jit
def _load_queries(
    query_ptr,
    token,
    heads,
    row_mask,
    stride_token,
    stride_head,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """[BLOCK_M, BLOCK]: one part of the queries of a token (or of one for each row) and heads [BLOCK_M]."""
    dims = tl.arange(0, BLOCK)
    offsets = token * stride_token + heads * stride_head
    mask = row_mask[:, None] & (dims < DIM)[None, :]
    return tl.load(query_ptr + offsets[:, None] + dims[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["num_seqs", "num_shares"])
def latent_decode_kernel(
    query_latent_ptr,
    query_rope_ptr,
    cache_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    out_ptr,
    sums_ptr,
    stats_ptr,
    splits_ptr,
    row_counts_ptr,
    score_scale,
    num_seqs,
    num_shares,
    stride_latent_token,
    stride_latent_head,
    stride_rope_token,
    stride_rope_head,
    stride_table,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    LATENT_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (NUM_GROUPS, num_seqs + num_shares); one program attends from the GROUP_SIZE heads of one group to one
    split of one sequence. Without sums_ptr every sequence is one split; with it, programs of sequences that have
    several leave partial results as Partials has them, where groups stand for KV heads.

    With row_counts_ptr num_seqs is the most that there can be, and the number of decodes is read there.
    """
    group = tl.program_id(0)
    item = tl.program_id(1)
    wait_for_previous(PDL)
    if row_counts_ptr is not None:
        num_seqs = tl.load(row_counts_ptr + 1).to(tl.int32)
        # Items are fewer than this whatever the lengths.
        if item >= num_seqs + num_shares:
            return
    seq, num_splits, begin = item, 1, 0
    end = 0
    if sums_ptr is not None:
        seq, first_item, num_splits, split_tiles = find_split(
            seq_lens_ptr, None, item, num_seqs, num_shares, 0, TILE, MIN_TILES, MAX_SPLITS, BLOCK_SEQS
        )
        if seq == num_seqs:
            return
        if item == first_item:
            # The programs of all groups store the same values.
            tl.store(splits_ptr + 2 * seq, first_item)
            tl.store(splits_ptr + 2 * seq + 1, tl.where(num_splits == 1, 0, num_splits))
        begin = (item - first_item) * split_tiles * TILE
        end = begin + split_tiles * TILE
    seq_len = tl.load(seq_lens_ptr + seq)
    end = seq_len if sums_ptr is None else tl.minimum(end, seq_len)

    rows = tl.arange(0, BLOCK_M)
    row_mask = rows < GROUP_SIZE
    heads = (group * GROUP_SIZE + rows).to(tl.int64)
    token = seq.to(tl.int64)
    query_latent = _load_queries(
        query_latent_ptr, token, heads, row_mask, stride_latent_token, stride_latent_head, LATENT_DIM, BLOCK_L
    )
    query_rope = _load_queries(
        query_rope_ptr, token, heads, row_mask, stride_rope_token, stride_rope_head, ROPE_DIM, BLOCK_R
    )
    table_ptr = block_tables_ptr + token * stride_table
    maximum, total, accumulator = _attend(
        query_latent, query_rope, cache_ptr, table_ptr, begin, end, rows, score_scale, LATENT_DIM, ROPE_DIM,
        BLOCK_SIZE, TILE, False,
    )  # fmt: skip
    release_next(PDL)

    dims = tl.arange(0, BLOCK_L)
    if num_splits == 1:
        # A void row saw no token; its output is 0 / 1.
        out = accumulator / tl.where(total > 0, total, 1.0)[:, None]
        out_offsets = (token * (NUM_GROUPS * GROUP_SIZE) + heads[:, None]) * LATENT_DIM + dims[None, :]
        mask = row_mask[:, None] & (dims < LATENT_DIM)[None, :]
        tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=mask)
    elif sums_ptr is not None:
        partial = (item * NUM_GROUPS + group).to(tl.int64)
        is_kept = rows < BLOCK_G
        row_stats_ptr = stats_ptr + partial * (2 * BLOCK_G) + rows
        tl.store(row_stats_ptr, maximum, mask=is_kept)
        tl.store(row_stats_ptr + BLOCK_G, total, mask=is_kept)
        cells = rows[:, None] * BLOCK_L + dims[None, :]
        tl.store(sums_ptr + partial * (BLOCK_G * BLOCK_L) + cells, accumulator, mask=is_kept[:, None])


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def latent_prefill_kernel(
    query_latent_ptr,
    query_rope_ptr,
    cache_ptr,
    block_tables_ptr,
    query_start_loc_ptr,
    seq_lens_ptr,
    row_counts_ptr,
    out_ptr,
    score_scale,
    first_seq,
    num_seqs,
    stride_latent_token,
    stride_latent_head,
    stride_rope_token,
    stride_rope_head,
    stride_table,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    LATENT_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid: (num_tokens // BLOCK_Q + num_seqs - first_seq, NUM_GROUPS); one program attends from a tile of BLOCK_Q
    queries, each with the GROUP_SIZE heads of one group: row m is query m // GROUP_SIZE and head m % GROUP_SIZE.

    Tiles vary fastest, a sequence's last ones first. The grid is an upper bound, known without the lengths. With
    row_counts_ptr first_seq and num_seqs are read there, and the grid covers any of them.
    """
    group = tl.program_id(1)
    if row_counts_ptr is not None:
        num_seqs = tl.load(row_counts_ptr).to(tl.int32)
        first_seq = tl.load(row_counts_ptr + 1).to(tl.int32)
        num_tokens = tl.load(query_start_loc_ptr + num_seqs) - tl.load(query_start_loc_ptr + first_seq)
        if tl.program_id(0) >= num_tokens // BLOCK_Q + num_seqs - first_seq:
            return
    seq, tile = find_sequence(query_start_loc_ptr, tl.program_id(0), first_seq, num_seqs, BLOCK_Q)
    query_start = tl.load(query_start_loc_ptr + seq)
    query_len = tl.load(query_start_loc_ptr + seq + 1) - query_start
    first_query = (tl.cdiv(query_len, BLOCK_Q) - 1 - tile) * BLOCK_Q
    if first_query < 0:
        return
    seq_len = tl.load(seq_lens_ptr + seq)
    first_position = seq_len - query_len + first_query

    rows = tl.arange(0, BLOCK_M)
    query_index = first_query + rows // GROUP_SIZE
    row_mask = (query_index < query_len) & (rows < BLOCK_Q * GROUP_SIZE)
    heads = (group * GROUP_SIZE + rows % GROUP_SIZE).to(tl.int64)
    token = (query_start + query_index).to(tl.int64)  # [BLOCK_M]
    query_latent = _load_queries(
        query_latent_ptr, token, heads, row_mask, stride_latent_token, stride_latent_head, LATENT_DIM, BLOCK_L
    )
    query_rope = _load_queries(
        query_rope_ptr, token, heads, row_mask, stride_rope_token, stride_rope_head, ROPE_DIM, BLOCK_R
    )
    table_ptr = block_tables_ptr + seq.to(tl.int64) * stride_table
    # Void rows have negative positions and see nothing.
    positions = first_position + rows // GROUP_SIZE
    end = tl.minimum(first_position + BLOCK_Q, seq_len)
    _, total, accumulator = _attend(
        query_latent, query_rope, cache_ptr, table_ptr, 0, end, positions, score_scale, LATENT_DIM, ROPE_DIM,
        BLOCK_SIZE, TILE, True,
    )  # fmt: skip
    out = accumulator / tl.where(total > 0, total, 1.0)[:, None]
    dims = tl.arange(0, BLOCK_L)
    out_offsets = (token * (NUM_GROUPS * GROUP_SIZE) + heads)[:, None] * LATENT_DIM + dims[None, :]
    mask = row_mask[:, None] & (dims < LATENT_DIM)[None, :]
    tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def latent_attention(inputs: LatentInputs, config: LatentConfig | None = None) -> torch.Tensor:
    """See the package. Launches depend on shapes and plain numbers alone: they can be captured in a graph."""
    query, num_decodes = inputs.query_latent, inputs.num_decodes
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_tokens, num_seqs = query.shape[0], inputs.seq_lens.shape[0]
    if num_tokens == 0 or num_seqs == 0:
        return out
    if (
        inputs.cache.is_cuda
        and query.element_size() == 2
        and (inputs.latent_dim % _VECTOR or inputs.rope_dim % _VECTOR)
    ):
        raise ValueError(f"latents of {inputs.latent_dim} + {inputs.rope_dim} in 16 bits: not multiples of {_VECTOR}")
    if inputs.max_query_len == 1:
        num_decodes = num_seqs
    elif inputs.row_counts is not None:
        # Which sequences are decodes is known on the device alone: both launches are made for as many as there can be.
        _attend_decodes(inputs, out, min(num_seqs, num_tokens), config)
        _attend_prefills(inputs, out, 0, config)
        return out
    if not 0 <= num_decodes <= min(num_seqs, num_tokens):
        raise ValueError(f"{num_decodes} decodes in a batch of {num_seqs} sequences and {num_tokens} tokens")
    if num_decodes:
        _attend_decodes(inputs, out, num_decodes, config)
    if num_decodes < num_seqs:
        _attend_prefills(inputs, out, num_decodes, config)
    return out


def config_for(element_size: int, num_rows: int, generation: int) -> LatentConfig:
    """Returns how heads times queries of so many rows are attended from, which programs may share."""
    if element_size != 2:
        return FLOAT
    if generation not in _GENERATIONS:
        return HALF_SMALL
    return HALF if num_rows <= _MAX_ROWS else HALF_MANY


def _attend_decodes(inputs: LatentInputs, out: torch.Tensor, num_decodes: int, config: LatentConfig | None) -> None:
    """Writes the first num_decodes rows of out: token i is sequence i's one new token."""
    device = inputs.cache.device
    generation, num_multiprocessors = gpu_traits(device)
    config = config or config_for(inputs.cache.element_size(), inputs.num_heads, generation)
    constants = decode_constants(config, inputs.num_heads, inputs.latent_dim, inputs.rope_dim, inputs.block_size)
    num_groups, block_g, block_l = constants["NUM_GROUPS"], constants["BLOCK_G"], constants["BLOCK_L"]
    # Most shares that the longest sequences could fill beyond one each.
    num_shares = num_decodes * (triton.cdiv(inputs.max_seq_len, constants["TILE"] * config.min_split_tiles) - 1)
    num_shares = max(0, min(num_shares, num_multiprocessors * config.programs_per_sm // num_groups))
    num_items = num_decodes + num_shares
    partials = Partials.empty(num_items, num_decodes, num_groups, block_g, block_l, device) if num_shares else None
    latent_decode_kernel[(num_groups, num_items)](
        inputs.query_latent,
        inputs.query_rope,
        inputs.cache,
        inputs.block_tables,
        inputs.seq_lens,
        out,
        *((partials.sums, partials.stats, partials.splits) if partials else (None, None, None)),
        inputs.row_counts,
        _LOG2_E * inputs.scale,
        num_decodes,
        num_shares,
        *_strides(inputs),
        **constants,
        BLOCK_SEQS=block_seqs(num_decodes),
        **launch_options(device),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if partials is None:
        return
    heads_per_program = triton.cdiv(inputs.num_heads * num_decodes, num_multiprocessors * 8)
    combine_splits_kernel[(triton.cdiv(inputs.num_heads, heads_per_program), num_decodes)](
        partials.sums,
        partials.stats,
        partials.splits,
        None,
        inputs.row_counts,
        None,
        out,
        heads_per_program,
        0,
        **combine_constants(constants, inputs.latent_dim),
        **launch_options(device),
        num_warps=4,
    )


def _attend_prefills(inputs: LatentInputs, out: torch.Tensor, first_seq: int, config: LatentConfig | None) -> None:
    """Writes the rows of out that belong to sequences from first_seq on; those before it have a token each."""
    generation, _ = gpu_traits(inputs.cache.device)
    config = config or config_for(inputs.cache.element_size(), _MAX_ROWS + 1, generation)
    constants = prefill_constants(config, inputs.num_heads, inputs.latent_dim, inputs.rope_dim, inputs.block_size)
    num_tokens, num_seqs = inputs.query_latent.shape[0], inputs.seq_lens.shape[0]
    num_tiles = (num_tokens - first_seq) // constants["BLOCK_Q"] + num_seqs - first_seq
    latent_prefill_kernel[(num_tiles, constants["NUM_GROUPS"])](
        inputs.query_latent,
        inputs.query_rope,
        inputs.cache,
        inputs.block_tables,
        inputs.query_start_loc,
        inputs.seq_lens,
        inputs.row_counts,
        out,
        _LOG2_E * inputs.scale,
        first_seq,
        num_seqs,
        *_strides(inputs),
        **constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _strides(inputs: LatentInputs) -> tuple[int, ...]:
    latent, rope = inputs.query_latent.stride(), inputs.query_rope.stride()
    return latent[0], latent[1], rope[0], rope[1], inputs.block_tables.stride(0)


@cache
def decode_constants(
    config: LatentConfig, num_heads: int, latent_dim: int, rope_dim: int, block_size: int
) -> dict[str, int]:
    """Returns the decode kernel's constants that depend on shapes and configuration."""
    shape = _shape(config, num_heads, latent_dim, rope_dim, block_size)
    block_g = triton.next_power_of_2(shape["GROUP_SIZE"])
    splitting = {"MIN_TILES": config.min_split_tiles, "MAX_SPLITS": MAX_SPLITS}
    return shape | {"BLOCK_M": max(16, block_g), "BLOCK_G": block_g} | splitting


@cache
def prefill_constants(
    config: LatentConfig, num_heads: int, latent_dim: int, rope_dim: int, block_size: int
) -> dict[str, int]:
    """Returns the prefill kernel's constants that depend on shapes and configuration."""
    shape = _shape(config, num_heads, latent_dim, rope_dim, block_size)
    return shape | {"BLOCK_M": _MAX_ROWS, "BLOCK_Q": _MAX_ROWS // shape["GROUP_SIZE"]}


def combine_constants(decode: dict[str, int], latent_dim: int) -> dict[str, object]:
    """Returns the constants of the second launch, given the decode kernel's."""
    return {
        "NUM_KV_HEADS": decode["NUM_GROUPS"],
        "GROUP_SIZE": decode["GROUP_SIZE"],
        "HEAD_DIM": latent_dim,
        "BLOCK_G": decode["BLOCK_G"],
        "BLOCK_D": decode["BLOCK_L"],
        "BLOCK_SPLITS": _COMBINED_SPLITS,
    }


def _shape(config: LatentConfig, num_heads: int, latent_dim: int, rope_dim: int, block_size: int) -> dict[str, int]:
    # Groups divide the heads, so that heads are counted through all groups.
    group_size = max(size for size in range(1, min(num_heads, _MAX_ROWS) + 1) if num_heads % size == 0)
    return {
        "NUM_GROUPS": num_heads // group_size,
        "GROUP_SIZE": group_size,
        "LATENT_DIM": latent_dim,
        "ROPE_DIM": rope_dim,
        "BLOCK_SIZE": block_size,
        # tl.dot takes at least 16 rows and columns.
        "BLOCK_L": max(16, triton.next_power_of_2(latent_dim)),
        "BLOCK_R": max(16, triton.next_power_of_2(rope_dim)),
        "TILE": tile_for(block_size, config.tile),
    }
