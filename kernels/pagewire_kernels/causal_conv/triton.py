"""causal_conv on a GPU: one launch for decodes; for prompts, and prompts beside decodes, one for the tokens and one for
the states, since many programs read a sequence's old state."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.causal_conv.inputs import ConvInputs
from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

DECODE_COLUMNS = 512
TOKEN_ROWS, TOKEN_COLUMNS = 16, 128
"""Tile of a program."""


@triton.jit
def _finish(total, bias_ptr, column, column_mask, HAS_BIAS: tl.constexpr, SILU: tl.constexpr):
    """Adds the bias to a float32 tile, the last axis of which is channels, and applies the activation."""
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    if SILU:
        total = total * tl.sigmoid(total)
    return total


@triton.jit
def decode_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    read_slots_ptr,
    write_slots_ptr,
    out_ptr,
    stride_x,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_seqs, cdiv(CHANNELS, COLUMNS)); a program convolves one token and moves its state on."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    mask = column < CHANNELS
    last_tap = tl.load(weight_ptr + column * WIDTH + (WIDTH - 1), mask=mask, other=0.0).to(tl.float32)
    release_next(PDL)
    wait_for_previous(PDL)
    read = tl.load(read_slots_ptr + row).to(tl.int64)
    old_ptr = state_ptr + read * ((WIDTH - 1) * CHANNELS) + column
    new_ptr = state_ptr + tl.load(write_slots_ptr + row).to(tl.int64) * ((WIDTH - 1) * CHANNELS) + column
    has_state = mask & (column * 0 + read >= 0)
    x = tl.load(x_ptr + row * stride_x + column, mask=mask, other=0.0)  # [COLUMNS]
    total = x.to(tl.float32) * last_tap
    # Reads and writes may be of one slot: each thread has read a channel's row before it writes the one before.
    for i in tl.static_range(WIDTH - 1):
        before = tl.load(old_ptr + i * CHANNELS, mask=has_state, other=0.0)
        tap = tl.load(weight_ptr + column * WIDTH + i, mask=mask, other=0.0).to(tl.float32)
        total += before.to(tl.float32) * tap
        if i > 0:
            tl.store(new_ptr + (i - 1) * CHANNELS, before, mask=mask)
    tl.store(new_ptr + (WIDTH - 2) * CHANNELS, x.to(state_ptr.dtype.element_ty), mask=mask)
    total = _finish(total, bias_ptr, column, mask, HAS_BIAS, SILU)
    tl.store(out_ptr + row * CHANNELS + column, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens", "num_seqs"])
def tokens_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    read_slots_ptr,
    query_start_loc_ptr,
    out_ptr,
    num_tokens,
    num_seqs,
    stride_x,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HALVINGS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_tokens, ROWS), cdiv(CHANNELS, COLUMNS)); a program convolves a tile of tokens and channels.

    HALVINGS: so many halve num_seqs to nothing.
    """
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]  # [1, COLUMNS]
    column_mask = column < CHANNELS
    release_next(PDL)
    wait_for_previous(PDL)
    num_in_sequences = tl.load(query_start_loc_ptr + num_seqs)
    # The last sequence that does not start behind the token. One that starts there and has no tokens is none before it.
    first = tl.zeros([ROWS], dtype=tl.int32)
    end = tl.zeros([ROWS], dtype=tl.int32) + num_seqs
    for _ in tl.static_range(HALVINGS):
        middle = (first + end) // 2
        is_searching = first + 1 < end
        starts_before = tl.load(query_start_loc_ptr + middle, mask=is_searching, other=0) <= token
        first = tl.where(is_searching & starts_before, middle, first)
        end = tl.where(is_searching & (starts_before == 0), middle, end)
    is_live = token < num_in_sequences
    start = tl.load(query_start_loc_ptr + first, mask=is_live, other=0)  # [ROWS]
    read = tl.load(read_slots_ptr + first, mask=is_live, other=-1).to(tl.int64)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for i in tl.static_range(WIDTH):
        source = token - (WIDTH - 1 - i)  # [ROWS]: the token, or before `start` a row of the state
        is_new = is_live & (source >= start)
        is_old = is_live & (source < start) & (read >= 0)
        x = tl.load(
            x_ptr + source.to(tl.int64)[:, None] * stride_x + column, mask=is_new[:, None] & column_mask, other=0.0
        )
        old_row = read * (WIDTH - 1) + (WIDTH - 1) + (source - start)
        old = tl.load(state_ptr + old_row[:, None] * CHANNELS + column, mask=is_old[:, None] & column_mask, other=0.0)
        tap = tl.load(weight_ptr + column * WIDTH + i, mask=column_mask, other=0.0).to(tl.float32)
        total += (x.to(tl.float32) + old.to(tl.float32)) * tap
    total = _finish(total, bias_ptr, column, column_mask, HAS_BIAS, SILU)
    total = tl.where(is_live[:, None], total, 0.0)
    out_mask = (token < num_tokens)[:, None] & column_mask
    out_offset = token.to(tl.int64)[:, None] * CHANNELS + column
    tl.store(out_ptr + out_offset, total.to(out_ptr.dtype.element_ty), mask=out_mask)


@triton.jit
def states_kernel(
    x_ptr,
    state_ptr,
    read_slots_ptr,
    write_slots_ptr,
    query_start_loc_ptr,
    stride_x,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_seqs, cdiv(CHANNELS, COLUMNS)); a program writes the state behind a sequence's tokens."""
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    release_next(PDL)
    wait_for_previous(PDL)
    start = tl.load(query_start_loc_ptr + row)
    num_new = tl.load(query_start_loc_ptr + row + 1) - start
    mask = (column < CHANNELS) & (column * 0 + num_new > 0)
    read = tl.load(read_slots_ptr + row).to(tl.int64)
    old_ptr = state_ptr + read * ((WIDTH - 1) * CHANNELS) + column
    new_ptr = state_ptr + tl.load(write_slots_ptr + row).to(tl.int64) * ((WIDTH - 1) * CHANNELS) + column
    source = (
        column * 0 + num_new - (WIDTH - 1)
    )  # of row 0, in each channel: the token, or below 0 a row of the old state
    has_state = column * 0 + read >= 0
    # Reads and writes may be of one slot: what is read for a row lies behind it, and is not written yet.
    for i in tl.static_range(WIDTH - 1):
        is_new = source + i >= 0
        token = (start + source + i).to(tl.int64)
        x = tl.load(x_ptr + token * stride_x + column, mask=mask & is_new, other=0.0)
        is_old = mask & (is_new == 0) & has_state
        old = tl.load(old_ptr + (i + num_new).to(tl.int64) * CHANNELS, mask=is_old, other=0.0)
        tl.store(new_ptr + i * CHANNELS, tl.where(is_new, x.to(state_ptr.dtype.element_ty), old), mask=mask)


def causal_conv(inputs: ConvInputs) -> torch.Tensor:
    """See the package."""
    x, state = inputs.x, inputs.state
    (num_tokens, channels), num_seqs, width = x.shape, len(inputs.read_slots), inputs.weight.shape[1]
    if x.stride(1) != 1 or not (inputs.weight.is_contiguous() and state.is_contiguous()):
        raise ValueError("rows of x, the weight and the state must be contiguous")
    is_decode = inputs.max_query_len == 1
    make = torch.zeros if is_decode and num_tokens > num_seqs else torch.empty
    out = make((num_tokens, channels), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    bias = inputs.weight if inputs.bias is None else inputs.bias
    slots = (inputs.read_slots, inputs.write_slots)
    sizes = {"CHANNELS": channels, "WIDTH": width, **launch_options(x.device)}
    ends = {"HAS_BIAS": inputs.bias is not None, "SILU": inputs.activation == "silu"}
    grid = (num_seqs, triton.cdiv(channels, DECODE_COLUMNS))
    if is_decode:
        decode_kernel[grid](
            x, inputs.weight, bias, state, *slots, out, x.stride(0), **sizes, **ends, COLUMNS=DECODE_COLUMNS
        )
        return out
    tokens_kernel[(triton.cdiv(num_tokens, TOKEN_ROWS), triton.cdiv(channels, TOKEN_COLUMNS))](
        x,
        inputs.weight,
        bias,
        state,
        inputs.read_slots,
        inputs.query_start_loc,
        out,
        num_tokens,
        num_seqs,
        x.stride(0),
        **sizes,
        **ends,
        HALVINGS=num_seqs.bit_length(),
        ROWS=TOKEN_ROWS,
        COLUMNS=TOKEN_COLUMNS,
    )
    states_kernel[grid](x, state, *slots, inputs.query_start_loc, x.stride(0), **sizes, COLUMNS=DECODE_COLUMNS)
    return out
