"""Prefill attention on Hopper: products, exponentials and copies of different warps run at the same time.

FlashAttention-3 (arXiv:2407.08608) over a paged cache, in Gluon, Triton's language for one level below tiles. One warp
(hopper_produce.py) copies keys and values to shared memory and finds the next piece of work; two warp groups
(hopper_consume.py) attend from 64 rows each, and compute a tile's exponentials while tensor cores are busy with the
values of the tile before and with the other group's products. triton_prefill.py does the same job without any of that
wherever `serves` says no.
"""

from functools import cache

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pagewire_kernels.gpu.traits import gpu_traits
from pagewire_kernels.paged_attention.hopper_consume import consume
from pagewire_kernels.paged_attention.hopper_produce import produce
from pagewire_kernels.paged_attention.hopper_shared import NOTICE_SIZE, NUM_CONSUMERS, PANEL, ROWS
from pagewire_kernels.paged_attention.inputs import AttentionInputs
from pagewire_kernels.tuning.paged_attention import HopperPrefillConfig, hopper_prefill_config

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

HOPPER = 90
# Registers of a thread: a multiprocessor has 512 for the warps of each lane, two that attend and one that copies.
CONSUMER_REGISTERS = gl.constexpr(232)
PRODUCER_REGISTERS = gl.constexpr(40)


@gluon.jit(do_not_specialize=["first_seq", "num_seqs", "num_items", "stride_table"])
def hopper_prefill_kernel(
    query_desc,
    key_desc,
    value_desc,
    block_tables_ptr,
    query_start_loc_ptr,
    seq_lens_ptr,
    sinks_ptr,
    out_ptr,
    counter_ptr,
    row_counts_ptr,
    score_scale,
    first_seq,
    num_seqs,
    num_items,
    stride_table,
    NUM_KV_HEADS: gl.constexpr,
    GROUP_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    TILE: gl.constexpr,
    NUM_STAGES: gl.constexpr,
):
    """Grid: one program for each multiprocessor, or for each item if those are fewer; a program that has done its item
    takes the next from counter_ptr [1], zero at the start.

    An item is BLOCK_Q = NUM_CONSUMERS * ROWS / GROUP_SIZE queries with the GROUP_SIZE query heads of one KV head: row m
    is query m // GROUP_SIZE and head m % GROUP_SIZE. KV heads vary fastest, then tiles of queries, a sequence's last
    ones first: they see most keys, and the short ones fill the gaps at the end. num_items is an upper bound, known
    without the lengths; some items have no work. With row_counts_ptr first_seq and num_seqs are read there, and
    num_items follows from them.

    Partitions: NUM_CONSUMERS warp groups of ROWS rows (consume), the first of them the default one, and one warp that
    copies (produce). Each buffer has two barriers: `full` is passed when its copies have arrived, `empty` when all
    consumers are done with it; keys and values each go round NUM_STAGES buffers. Queries have one buffer, whose
    barriers also guard the notice, where the producer says what the item is.

    Shapes in shared memory: queries [NUM_CONSUMERS, ROWS, HEAD_DIM], keys and values [NUM_STAGES, TILE, HEAD_DIM].
    """
    DTYPE: gl.constexpr = key_desc.dtype
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    queries = gl.allocate_shared_memory(DTYPE, [NUM_CONSUMERS, ROWS, HEAD_DIM], OPERAND)
    keys = gl.allocate_shared_memory(DTYPE, [NUM_STAGES, TILE, HEAD_DIM], OPERAND)
    values = gl.allocate_shared_memory(DTYPE, [NUM_STAGES, TILE, HEAD_DIM], OPERAND)
    notice = gl.allocate_shared_memory(gl.int32, [NOTICE_SIZE, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    query_full = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    query_empty = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    key_full = gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], BARRIER)
    key_empty = gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], BARRIER)
    value_full = gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], BARRIER)
    value_empty = gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], BARRIER)
    mbarrier.init(query_full, count=1)
    mbarrier.init(query_empty, count=NUM_CONSUMERS)
    for stage in gl.static_range(NUM_STAGES):
        mbarrier.init(key_full.index(stage), count=1)
        mbarrier.init(value_full.index(stage), count=1)
        mbarrier.init(key_empty.index(stage), count=NUM_CONSUMERS)
        mbarrier.init(value_empty.index(stage), count=NUM_CONSUMERS)
    hopper.fence_async_shared()

    buffers = (queries, keys, values, notice)
    barriers = (query_full, query_empty, key_full, key_empty, value_full, value_empty)
    # Written out, because a constant would no longer be one after it is assigned as part of a tuple.
    gl.warp_specialize(
        [
            (consume, (0, ((sinks_ptr, out_ptr), score_scale, buffers, barriers), NUM_KV_HEADS, GROUP_SIZE)),
            (consume, (1, ((sinks_ptr, out_ptr), score_scale, buffers, barriers), NUM_KV_HEADS, GROUP_SIZE)),
            (
                produce,
                (
                    (query_desc, key_desc, value_desc),
                    (block_tables_ptr, query_start_loc_ptr, seq_lens_ptr, counter_ptr, row_counts_ptr),
                    (first_seq, num_seqs, num_items, stride_table),
                    buffers,
                    barriers,
                    NUM_KV_HEADS,
                    GROUP_SIZE,
                    BLOCK_SIZE,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


def serves(inputs: AttentionInputs) -> bool:
    """Returns whether attend_prefills takes these inputs."""
    query, group_size, block_size = inputs.query, inputs.group_size, inputs.block_size
    return (
        query.is_cuda
        and gpu_traits(query.device)[0] == HOPPER
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[2] in (64, 128)
        and hopper_prefill_config(HOPPER, query.shape[2], query.element_size()) is not None
        and not (inputs.sliding_window or inputs.logit_softcap)
        and inputs.alibi_slopes is None
        and block_size >= 16
        and block_size & (block_size - 1) == 0
        and group_size <= ROWS.value
        and group_size & (group_size - 1) == 0
        # Bulk copies need addresses that are multiples of 16 bytes and coordinates of 32 bits.
        and query.stride(0) % 8 == 0
        and all(tensor.data_ptr() % 16 == 0 for tensor in (query, inputs.key_cache, inputs.value_cache))
        and inputs.key_cache.shape[0] * block_size < 2**31
    )


def attend_prefills(
    inputs: AttentionInputs, out: torch.Tensor, first_seq: int, config: HopperPrefillConfig | None = None
) -> None:
    """Writes the rows of out that belong to sequences from first_seq on; those before it have a token each.

    Args:
        first_seq: With inputs.row_counts the least that there can be.
        config: tile configuration; None: the tuning table's choice.
    """
    query = inputs.query
    num_tokens, num_heads, head_dim = query.shape
    num_seqs, group_size, block_size = inputs.seq_lens.shape[0], inputs.group_size, inputs.block_size
    config = config or hopper_prefill_config(HOPPER, head_dim, query.element_size())
    assert config is not None, "serves has been asked"
    assert config.num_stages >= 2, "values of one tile and keys of the next are needed at the same time"
    block_q = NUM_CONSUMERS.value * ROWS.value // group_size
    num_items = ((num_tokens - first_seq) // block_q + num_seqs - first_seq) * inputs.num_kv_heads
    num_programs = min(num_items, gpu_traits(query.device)[1])
    counter = (torch.zeros if num_items > num_programs else torch.empty)(1, dtype=torch.int32, device=query.device)
    query_box, cache_box = _boxes(config, group_size, block_size)
    query_desc = TensorDescriptor(
        query, [num_tokens, num_heads, head_dim], [query.stride(0), head_dim, 1], query_box, _panel_layout(3)
    )
    slots = [inputs.key_cache.shape[0] * block_size, inputs.num_kv_heads * head_dim]
    key_desc, value_desc = (
        TensorDescriptor(tensor, slots, [slots[1], 1], cache_box, _panel_layout(2))
        for tensor in (inputs.key_cache, inputs.value_cache)
    )
    hopper_prefill_kernel[(num_programs,)](
        query_desc,
        key_desc,
        value_desc,
        inputs.block_tables,
        inputs.query_start_loc,
        inputs.seq_lens,
        inputs.sinks,
        out,
        counter,
        inputs.row_counts,
        inputs.score_scale,
        first_seq,
        num_seqs,
        num_items,
        inputs.block_tables.stride(0),
        **_constants(config, group_size, head_dim, inputs.num_kv_heads, block_size),
        num_warps=4,
    )


def _boxes(config: HopperPrefillConfig, group_size: int, block_size: int) -> tuple[list[int], list[int]]:
    """Returns what one copy takes: queries [queries of a consumer, heads of a group, PANEL], cache [keys, PANEL]."""
    return [ROWS.value // group_size, group_size, PANEL.value], [min(block_size, config.tile), PANEL.value]


@cache
def _panel_layout(rank: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(128, 16, rank)


@cache
def _constants(
    config: HopperPrefillConfig, group_size: int, head_dim: int, num_kv_heads: int, block_size: int
) -> dict[str, int]:
    """Returns the kernel's constants that depend on shapes and configuration."""
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP_SIZE": group_size,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "TILE": config.tile,
        "NUM_STAGES": config.num_stages,
    }
