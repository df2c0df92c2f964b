"""Combines the results of a sequence's splits: the second launch of decode attention on a GPU."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.traits import gpu_traits
from pagewire_kernels.paged_attention.inputs import AttentionInputs
from pagewire_kernels.paged_attention.shared_prefixes import (
    ROW_FIELDS,
    ROW_FIRST_SLOT,
    ROW_NUM_SLOTS,
    SharedPrefixes,
)
from pagewire_kernels.paged_attention.triton_tile import LOWEST, add_sinks

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_ROW_FIELDS = tl.constexpr(ROW_FIELDS)
_ROW_FIRST_SLOT, _ROW_NUM_SLOTS = tl.constexpr(ROW_FIRST_SLOT), tl.constexpr(ROW_NUM_SLOTS)

MAX_SPLITS = 64
"""Most splits of one sequence, those of its shared runs included."""


@dataclass(frozen=True, slots=True)
class _Config:
    block_splits: int
    """Partial results that a program loads at once."""
    num_warps: int
    programs_per_sm: int
    """Most programs on a multiprocessor: as many as are resident."""


_SPLITS = _Config(MAX_SPLITS, 4, 8)
"""For splits alone: most sequences of a large batch have one, and the others all of theirs at once, which for heads of
128 takes 64 registers of each of 128 threads."""
_SHARED = _Config(8, 1, 32)
"""For shared runs: every sequence has some partial results, most of them few."""


@dataclass(frozen=True, slots=True)
class Partials:
    """The partial results of splits, and behind them of the slots of shared runs. G and D: a group's query heads and
    head_dim, rounded up to powers of two."""

    sums: torch.Tensor
    """[num_items, num_kv_heads, G, D] float32: weighted sums of values."""
    stats: torch.Tensor
    """[num_items, num_kv_heads, 2, G] float32: maxima of the scores, in powers of two, and totals of the weights."""
    splits: torch.Tensor
    """[num_seqs, 2] int32: a sequence's first item and how many it has; 0: it is done already."""

    @classmethod
    def empty(
        cls, num_items: int, num_seqs: int, num_kv_heads: int, g: int, d: int, device: torch.device
    ) -> "Partials":
        """Allocates uninitialised tensors for num_items splits of num_seqs sequences."""
        num_rows = num_items * num_kv_heads * g
        scratch = torch.empty(num_rows * (d + 2), dtype=torch.float32, device=device)
        return cls(
            sums=scratch[: num_rows * d].view(num_items, num_kv_heads, g, d),
            stats=scratch[num_rows * d :].view(num_items, num_kv_heads, 2, g),
            splits=torch.empty((num_seqs, 2), dtype=torch.int32, device=device),
        )


@triton.jit(do_not_specialize=["heads_per_program", "first_shared"])
def combine_splits_kernel(
    sums_ptr,
    stats_ptr,
    splits_ptr,
    sinks_ptr,
    row_counts_ptr,
    shared_rows_ptr,
    out_ptr,
    heads_per_program,
    first_shared,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_heads, heads_per_program), num_seqs); one program makes heads_per_program query heads of one
    sequence, each in few rounds of loads: the latency of memory is most of what this takes.

    With row_counts_ptr the number of sequences is read there, and the grid covers the most that there can be.
    With shared_rows_ptr, the rows of a plan (shared_prefixes.py), slot s of the plan is partial first_shared + s.
    """
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP_SIZE
    first_head = tl.program_id(0) * heads_per_program
    seq = tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    release_next(PDL)
    wait_for_previous(PDL)
    if row_counts_ptr is not None:
        num_decodes = tl.load(row_counts_ptr + 1)
        if seq >= num_decodes:
            return
    first_item = tl.load(splits_ptr + 2 * seq)
    num_splits = tl.load(splits_ptr + 2 * seq + 1)
    if num_splits == 0:
        return
    num_slots, first_slot = 0, 0
    if shared_rows_ptr is not None:
        first_slot = tl.load(shared_rows_ptr + seq * _ROW_FIELDS + _ROW_FIRST_SLOT)
        num_slots = tl.load(shared_rows_ptr + seq * _ROW_FIELDS + _ROW_NUM_SLOTS)
    # The partial result behind the last split is the first slot.
    first_slot += first_shared - num_splits
    num_partials = num_splits + num_slots
    for head in range(first_head, tl.minimum(first_head + heads_per_program, NUM_HEADS)):
        row = head % GROUP_SIZE
        maximum, total = tl.full([], LOWEST, tl.float32), tl.full([], 0.0, tl.float32)
        accumulator = tl.zeros([BLOCK_D], tl.float32)
        for first in range(0, num_partials, BLOCK_SPLITS):
            split = first + tl.arange(0, BLOCK_SPLITS)
            is_split = split < num_partials
            item = split + tl.where(split < num_splits, first_item, first_slot)
            partial = item.to(tl.int64) * NUM_KV_HEADS + head // GROUP_SIZE  # [BLOCK_SPLITS]
            maxima = tl.load(stats_ptr + partial * (2 * BLOCK_G) + row, mask=is_split, other=LOWEST)
            totals = tl.load(stats_ptr + partial * (2 * BLOCK_G) + BLOCK_G + row, mask=is_split, other=0.0)
            cells = (partial * BLOCK_G + row)[:, None] * BLOCK_D + dims[None, :]
            sums = tl.load(sums_ptr + cells, mask=is_split[:, None], other=0.0)  # [BLOCK_SPLITS, BLOCK_D]
            new_maximum = tl.maximum(maximum, tl.max(maxima, axis=0))
            weights, rescale = tl.exp2(maxima - new_maximum), tl.exp2(maximum - new_maximum)
            maximum = new_maximum
            total = total * rescale + tl.sum(totals * weights, axis=0)
            accumulator = accumulator * rescale + tl.sum(sums * weights[:, None], axis=0)
        out = accumulator / add_sinks(sinks_ptr, head, True, maximum, total)  # [BLOCK_D]
        out_offsets = (seq * NUM_HEADS + head) * HEAD_DIM + dims
        tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)


def combine_splits(
    inputs: AttentionInputs,
    out: torch.Tensor,
    partials: Partials,
    shared: SharedPrefixes | None = None,
    first_shared: int = 0,
) -> None:
    """Writes the rows of out whose sequences were split or share keys; the others stay as they are.

    Args:
        first_shared: Number of the partial result that is the first slot of `shared`.
    """
    num_heads, head_dim = inputs.query.shape[1:]
    _, num_kv_heads, block_g, block_d = partials.sums.shape
    num_seqs = len(partials.splits)
    _, num_multiprocessors = gpu_traits(inputs.query.device)
    config = _SHARED if shared else _SPLITS
    heads_per_program = triton.cdiv(num_heads * num_seqs, num_multiprocessors * config.programs_per_sm)
    combine_splits_kernel[(triton.cdiv(num_heads, heads_per_program), num_seqs)](
        partials.sums,
        partials.stats,
        partials.splits,
        inputs.sinks,
        inputs.row_counts,
        shared.rows if shared else None,
        out,
        heads_per_program,
        first_shared,
        **_constants(config, num_kv_heads, inputs.group_size, head_dim, block_g, block_d),
        **launch_options(inputs.query.device),
        num_warps=config.num_warps,
    )


def _constants(
    config: _Config, num_kv_heads: int, group_size: int, head_dim: int, block_g: int, block_d: int
) -> dict[str, int]:
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP_SIZE": group_size,
        "HEAD_DIM": head_dim,
        "BLOCK_G": block_g,
        "BLOCK_D": block_d,
        "BLOCK_SPLITS": config.block_splits,
    }
