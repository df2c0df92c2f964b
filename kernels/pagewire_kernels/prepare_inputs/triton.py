"""prepare_inputs on a GPU: one launch, and for decodes one without sums."""

from dataclasses import fields

import torch
import triton
import triton.language as tl

from pagewire_kernels.prepare_inputs.inputs import PreparedInputs, StepRows

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_BLOCK = 1024
"""Tokens, table entries or query lengths that a program treats at once: 8 for each thread of 4 warps."""
_NUM_WARPS = 4


@triton.jit
def _copy_table(source_ptr, target_ptr, part, num_entries, num_parts, BLOCK: tl.constexpr):
    """Copies every num_parts-th tile of a block table's num_entries entries, from tile `part` on."""
    for first in range(part * BLOCK, num_entries, num_parts * BLOCK):
        entry = first + tl.arange(0, BLOCK)
        mask = entry < num_entries
        tl.store(target_ptr + entry, tl.load(source_ptr + entry, mask=mask), mask=mask)


# Slots and query lengths come packed from the host, aligned to their own size only.
@triton.jit(do_not_specialize=["num_rows", "max_blocks"], do_not_specialize_on_alignment=["slots_ptr"])
def prepare_decode_kernel(
    slots_ptr,
    ints_ptr,
    token_ids_ptr,
    tables_ptr,
    input_ids_ptr,
    positions_ptr,
    slot_mapping_ptr,
    query_start_loc_ptr,
    seq_lens_ptr,
    out_tables_ptr,
    num_rows,
    max_blocks,
    stride_ints,
    stride_tokens,
    stride_tables,
    BLOCK_SIZE: tl.constexpr,
    NUM_COMPUTED: tl.constexpr,
    STOP_REASON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (num_rows, cdiv(max_blocks, BLOCK)); one program copies a tile of one row's block table, the first of a
    row also makes its one token's inputs."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    slot = tl.load(slots_ptr + row)
    position = tl.load(ints_ptr + slot * stride_ints + NUM_COMPUTED)
    live = tl.load(ints_ptr + slot * stride_ints + STOP_REASON) == 0
    table_ptr = tables_ptr + slot * stride_tables
    if part == 0:
        position_in_row = tl.where(live, position, 0)
        block = tl.load(table_ptr + position_in_row // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
        token = tl.load(token_ids_ptr + slot * stride_tokens + position_in_row, mask=live, other=0).to(tl.int64)
        tl.store(input_ids_ptr + row, token)
        tl.store(positions_ptr + row, position_in_row)
        tl.store(slot_mapping_ptr + row, tl.where(live, block * BLOCK_SIZE + position % BLOCK_SIZE, -1))
        tl.store(seq_lens_ptr + row, tl.where(live, position + 1, 0).to(tl.int32))
        tl.store(query_start_loc_ptr + row, row)
        if row == num_rows - 1:
            tl.store(query_start_loc_ptr + num_rows, num_rows)
    num_entries = tl.where(live, position // BLOCK_SIZE + 1, 0).to(tl.int32)
    out_ptr = out_tables_ptr + row.to(tl.int64) * max_blocks
    _copy_table(table_ptr, out_ptr, part, num_entries, tl.num_programs(1), BLOCK)


@triton.jit(
    do_not_specialize=["num_rows", "num_tokens", "max_blocks"],
    do_not_specialize_on_alignment=["slots_ptr", "query_lens_ptr"],
)
def prepare_mixed_kernel(
    slots_ptr,
    query_lens_ptr,
    ints_ptr,
    token_ids_ptr,
    tables_ptr,
    input_ids_ptr,
    positions_ptr,
    slot_mapping_ptr,
    query_start_loc_ptr,
    seq_lens_ptr,
    out_tables_ptr,
    num_rows,
    num_tokens,
    max_blocks,
    stride_ints,
    stride_tokens,
    stride_tables,
    BLOCK_SIZE: tl.constexpr,
    NUM_COMPUTED: tl.constexpr,
    STOP_REASON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (num_rows + 1, num_parts); programs (row, part) share out a row's tokens and table entries in tiles of
    BLOCK. The last row is the padding behind all others. Each program adds up the query lengths before its row."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    num_parts = tl.num_programs(1)
    start = 0
    for first in range(0, row, BLOCK):
        index = first + tl.arange(0, BLOCK)
        start += tl.sum(tl.load(query_lens_ptr + index, mask=index < row, other=0).to(tl.int32), axis=0)
    is_row = row < num_rows
    slot = tl.load(slots_ptr + row, mask=is_row, other=0)
    query_len = tl.load(query_lens_ptr + row, mask=is_row, other=0).to(tl.int32)
    query_len = tl.where(is_row, query_len, num_tokens - start)
    computed = tl.load(ints_ptr + slot * stride_ints + NUM_COMPUTED)
    live = is_row & (tl.load(ints_ptr + slot * stride_ints + STOP_REASON) == 0)
    num_read = tl.where(live, query_len, 0)
    table_ptr = tables_ptr + slot * stride_tables
    for first in range(part * BLOCK, query_len, num_parts * BLOCK):
        offset = first + tl.arange(0, BLOCK)
        mask = offset < query_len
        is_read = offset < num_read
        position = tl.where(live, computed + offset, 0)  # [BLOCK]
        block = tl.load(table_ptr + position // BLOCK_SIZE, mask=is_read, other=0).to(tl.int64)
        token = tl.load(token_ids_ptr + slot * stride_tokens + position, mask=is_read, other=0).to(tl.int64)
        cache_slot = tl.where(live, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
        tl.store(input_ids_ptr + start + offset, token, mask=mask)
        tl.store(positions_ptr + start + offset, position, mask=mask)
        tl.store(slot_mapping_ptr + start + offset, cache_slot, mask=mask)
    seq_len = tl.where(live, computed + query_len, 0).to(tl.int32)
    if part == 0:
        tl.store(query_start_loc_ptr + row, start)
        tl.store(seq_lens_ptr + row, seq_len, mask=is_row)
    out_ptr = out_tables_ptr + row.to(tl.int64) * max_blocks
    _copy_table(table_ptr, out_ptr, part, (seq_len + BLOCK_SIZE - 1) // BLOCK_SIZE, num_parts, BLOCK)


def prepare_inputs(rows: StepRows) -> PreparedInputs:
    """See the package."""
    state, slots, query_lens = rows.state, rows.slots, rows.query_lens
    num_tokens, max_blocks = rows.num_tokens, rows.max_blocks
    num_rows = slots.shape[0]
    if query_lens is None and num_tokens != num_rows:
        raise ValueError(f"{num_rows} rows of one token make {num_rows} tokens, not {num_tokens}")
    if max_blocks > state.block_tables.shape[1]:
        raise ValueError(f"block tables have {state.block_tables.shape[1]} columns, not {max_blocks}")
    device = slots.device
    inputs = PreparedInputs(
        input_ids=torch.empty(num_tokens, dtype=torch.int64, device=device),
        positions=torch.empty(num_tokens, dtype=torch.int64, device=device),
        slot_mapping=torch.empty(num_tokens, dtype=torch.int64, device=device),
        query_start_loc=torch.empty(num_rows + 1, dtype=torch.int32, device=device),
        seq_lens=torch.empty(num_rows, dtype=torch.int32, device=device),
        block_tables=torch.empty((num_rows, max_blocks), dtype=torch.int32, device=device),
    )
    sources = (state.ints, state.token_ids, state.block_tables)
    outputs = tuple(getattr(inputs, field.name) for field in fields(PreparedInputs))
    strides = tuple(source.stride(0) for source in sources)
    columns = {"NUM_COMPUTED": state.columns.num_computed, "STOP_REASON": state.columns.stop_reason}
    options = {"BLOCK_SIZE": rows.block_size, **columns, "BLOCK": _BLOCK, "num_warps": _NUM_WARPS}
    if query_lens is None:
        grid = (num_rows, max(1, triton.cdiv(max_blocks, _BLOCK)))
        prepare_decode_kernel[grid](slots, *sources, *outputs, num_rows, max_blocks, *strides, **options)
    else:
        grid = (num_rows + 1, max(1, triton.cdiv(max(num_tokens, max_blocks), _BLOCK)))
        counts = (num_rows, num_tokens, max_blocks)
        prepare_mixed_kernel[grid](slots, query_lens.contiguous(), *sources, *outputs, *counts, *strides, **options)
    return inputs


_INT64 = ("slots_ptr", "ints_ptr", "input_ids_ptr", "positions_ptr", "slot_mapping_ptr")
_INT32 = ("token_ids_ptr", "tables_ptr", "query_start_loc_ptr", "seq_lens_ptr", "out_tables_ptr")
