"""mamba2 on a GPU: one launch for decodes, which reads and writes each state once, and one for prompts.

Prompts go chunk by chunk as matrix products (state space duality): within a chunk a token reads the tokens before it
like masked attention, and all that came before the chunk through the state. A program takes a head, or a part of its
rows, of one sequence and walks through the chunks with the state in registers, so that nothing but the sequences'
lengths is needed to launch, no partial state goes through memory, and mixtures of lengths need no plan.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.mamba2.inputs import Mamba2Inputs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_DECODE_ELEMENTS = 4096
"""Elements of the state that a program of a decode updates: 32 registers of each of 128 threads."""


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How a program runs a prompt, by the dtype of x. The registers of Hopper's threads decide."""

    chunk: int
    """Tokens of a chunk. From 64 on, products have the rows that Hopper's tensor cores want."""
    max_elements: int
    """Most elements of the state that a program keeps in registers."""
    num_warps: int
    num_stages: int
    operand: Any
    """Triton dtype that operands of products are rounded to. float16 has not the range for states."""
    precision: str


_PREFILL_CONFIGS = {
    torch.bfloat16: PrefillConfig(32, 8192, 4, 2, tl.bfloat16, "tf32"),
    torch.float16: PrefillConfig(32, 4096, 4, 1, tl.float32, "tf32"),
    # For comparisons, not for speed.
    torch.float32: PrefillConfig(16, 2048, 4, 1, tl.float32, "ieee"),
}
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _step_length(raw, dt_min, dt_max):
    """softplus within limits. Beyond 20 it is the identity, as torch has it."""
    softplus = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
    # log(1 + e) loses the digits of small e: below, the first terms of its series.
    small = tl.exp(tl.minimum(raw, -5.0))
    softplus = tl.where(raw < -5.0, small * (1.0 - small * (0.5 - small * (1.0 / 3.0))), softplus)
    return tl.minimum(tl.maximum(softplus, dt_min), dt_max)


@triton.jit
def _silu(gate):
    return gate * tl.sigmoid(gate)


@triton.jit(do_not_specialize=["num_decodes"])
def mamba2_decode_kernel(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    gate_ptr,
    decay_ptr,
    skip_ptr,
    dt_bias_ptr,
    state_ptr,
    read_slots_ptr,
    write_slots_ptr,
    row_counts_ptr,
    out_ptr,
    dt_min,
    dt_max,
    num_decodes,
    stride_x,
    stride_dt,
    stride_b,
    stride_c,
    stride_gate,
    stride_slot,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    STATE_SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (NUM_HEADS * cdiv(HEAD_DIM, BLOCK_P), num_decodes); one program updates BLOCK_P rows of one head's state by
    one token and reads them. Token i is sequence i's. With row_counts_ptr the number of decodes is read there."""
    NUM_BLOCKS: tl.constexpr = (HEAD_DIM + BLOCK_P - 1) // BLOCK_P
    head = tl.program_id(0) // NUM_BLOCKS
    seq = tl.program_id(1)
    release_next(PDL)
    wait_for_previous(PDL)
    if row_counts_ptr is not None:
        num_decodes = tl.load(row_counts_ptr + 1).to(tl.int32)
    if seq < num_decodes:
        rows = tl.program_id(0) % NUM_BLOCKS * BLOCK_P + tl.arange(0, BLOCK_P)
        columns = tl.arange(0, BLOCK_N)
        is_row, is_column = rows < HEAD_DIM, columns < STATE_SIZE
        token = seq.to(tl.int64)
        read_slot = tl.load(read_slots_ptr + seq).to(tl.int64)
        write_slot = tl.load(write_slots_ptr + seq).to(tl.int64)
        cells = head * (HEAD_DIM * STATE_SIZE) + rows[:, None] * STATE_SIZE + columns[None, :]
        is_cell = is_row[:, None] & is_column[None, :]
        state = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
        if read_slot >= 0:
            state = tl.load(state_ptr + read_slot * stride_slot + cells, mask=is_cell, other=0.0)
        group = head // HEADS_PER_GROUP * STATE_SIZE
        b = tl.load(b_ptr + token * stride_b + group + columns, mask=is_column, other=0.0).to(tl.float32)  # [BLOCK_N]
        c = tl.load(c_ptr + token * stride_c + group + columns, mask=is_column, other=0.0).to(tl.float32)
        x_offsets = head * HEAD_DIM + rows
        x = tl.load(x_ptr + token * stride_x + x_offsets, mask=is_row, other=0.0).to(tl.float32)  # [BLOCK_P]
        raw = tl.load(dt_ptr + token * stride_dt + head).to(tl.float32) + tl.load(dt_bias_ptr + head)
        length = _step_length(raw, dt_min, dt_max)
        state = state * tl.exp(length * tl.load(decay_ptr + head)) + (length * x)[:, None] * b[None, :]
        tl.store(state_ptr + write_slot * stride_slot + cells, state, mask=is_cell)
        out = tl.sum(state * c[None, :], axis=1) + tl.load(skip_ptr + head) * x
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + token * stride_gate + x_offsets, mask=is_row, other=0.0).to(tl.float32)
            out = out * _silu(gate)
        out_offsets = token * (NUM_HEADS * HEAD_DIM) + x_offsets
        tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def mamba2_prefill_kernel(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    gate_ptr,
    decay_ptr,
    skip_ptr,
    dt_bias_ptr,
    state_ptr,
    read_slots_ptr,
    write_slots_ptr,
    query_start_loc_ptr,
    row_counts_ptr,
    out_ptr,
    dt_min,
    dt_max,
    first_seq,
    num_seqs,
    stride_x,
    stride_dt,
    stride_b,
    stride_c,
    stride_gate,
    stride_slot,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    STATE_SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (NUM_HEADS * cdiv(HEAD_DIM, BLOCK_P), num_seqs - first_seq); one program runs all tokens of one sequence
    through BLOCK_P rows of one head's state.

    Operands of products are rounded to OPERAND; sums and the state are float32. With row_counts_ptr first_seq and
    num_seqs are read there, and the grid covers any of them.
    """
    NUM_BLOCKS: tl.constexpr = (HEAD_DIM + BLOCK_P - 1) // BLOCK_P
    head = tl.program_id(0) // NUM_BLOCKS
    if row_counts_ptr is not None:
        num_seqs = tl.load(row_counts_ptr).to(tl.int32)
        first_seq = tl.load(row_counts_ptr + 1).to(tl.int32)
    seq = first_seq + tl.program_id(1)
    if seq >= num_seqs:
        return
    start = tl.load(query_start_loc_ptr + seq)
    end = tl.load(query_start_loc_ptr + seq + 1)
    if start == end:
        return
    rows = tl.program_id(0) % NUM_BLOCKS * BLOCK_P + tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_N)
    steps = tl.arange(0, CHUNK)
    is_row, is_column = rows < HEAD_DIM, columns < STATE_SIZE
    # The state is held transposed: [BLOCK_N, BLOCK_P].
    cells = head * (HEAD_DIM * STATE_SIZE) + rows[None, :] * STATE_SIZE + columns[:, None]
    is_cell = is_row[None, :] & is_column[:, None]
    read_slot = tl.load(read_slots_ptr + seq).to(tl.int64)
    write_slot = tl.load(write_slots_ptr + seq).to(tl.int64)
    state = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    if read_slot >= 0:
        state = tl.load(state_ptr + read_slot * stride_slot + cells, mask=is_cell, other=0.0)
    rate = tl.load(decay_ptr + head) * _LOG2_E
    skip, dt_bias = tl.load(skip_ptr + head), tl.load(dt_bias_ptr + head)
    group = head // HEADS_PER_GROUP * STATE_SIZE
    x_offsets = head * HEAD_DIM + rows
    is_earlier = steps[:, None] >= steps[None, :]
    for first in range(start, end, CHUNK):
        tokens = (first + steps).to(tl.int64)
        is_token = first + steps < end
        is_x = is_token[:, None] & is_row[None, :]
        is_bc = is_token[:, None] & is_column[None, :]
        x = tl.load(x_ptr + tokens[:, None] * stride_x + x_offsets[None, :], mask=is_x, other=0.0)  # [CHUNK, BLOCK_P]
        b = tl.load(b_ptr + tokens[:, None] * stride_b + (group + columns)[None, :], mask=is_bc, other=0.0)
        c = tl.load(c_ptr + tokens[:, None] * stride_c + (group + columns)[None, :], mask=is_bc, other=0.0)
        dt = tl.load(dt_ptr + tokens * stride_dt + head, mask=is_token, other=0.0)
        # A step beyond the end has no length: it neither decays the state nor adds to it.
        length = tl.where(is_token, _step_length(dt.to(tl.float32) + dt_bias, dt_min, dt_max), 0.0)  # [CHUNK]
        # log2 of what a step leaves of the state. Differences of large sums would be inexact, and 2**-64 of a state
        # changes no sum.
        decays = tl.maximum(length * rate, -64.0)
        decayed, total = tl.cumsum(decays), tl.sum(decays)  # of the state before the chunk
        b, c = b.to(OPERAND), c.to(OPERAND)  # [CHUNK, BLOCK_N]
        # What each step reads of the steps up to it.
        left = tl.where(is_earlier, tl.exp2(decayed[:, None] - decayed[None, :]), 0.0)
        scores = tl.dot(c, tl.trans(b), input_precision=PRECISION) * left * length[None, :]  # [CHUNK, CHUNK]
        out = tl.dot(c, state.to(OPERAND), input_precision=PRECISION) * tl.exp2(decayed)[:, None]  # [CHUNK, BLOCK_P]
        out = tl.dot(scores.to(OPERAND), x.to(OPERAND), out, input_precision=PRECISION)
        added = x.to(tl.float32) * (length * tl.exp2(total - decayed))[:, None]
        state = tl.dot(tl.trans(b), added.to(OPERAND), state * tl.exp2(total), input_precision=PRECISION)
        out += skip * x.to(tl.float32)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + tokens[:, None] * stride_gate + x_offsets[None, :], mask=is_x, other=0.0)
            out = out * _silu(gate.to(tl.float32))
        out_offsets = tokens[:, None] * (NUM_HEADS * HEAD_DIM) + x_offsets[None, :]
        tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=is_x)
    tl.store(state_ptr + write_slot * stride_slot + cells, state, mask=is_cell)


def mamba2(inputs: Mamba2Inputs) -> torch.Tensor:
    """See the package."""
    num_tokens, num_seqs, num_decodes = inputs.x.shape[0], inputs.read_slots.shape[0], inputs.num_decodes
    if not 0 <= num_decodes <= min(num_seqs, num_tokens):
        raise ValueError(f"{num_decodes} decodes in a batch of {num_seqs} sequences and {num_tokens} tokens")
    out = torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)
    if inputs.max_query_len == 1:
        first_prompt = most_decodes = num_seqs
    elif inputs.row_counts is None:
        first_prompt = most_decodes = num_decodes
    else:
        # Any number of the sequences may be decodes.
        first_prompt, most_decodes = 0, min(num_seqs, num_tokens)
    if most_decodes:
        _run_decodes(inputs, out, most_decodes)
    if first_prompt < num_seqs and num_tokens:
        _run_prompts(inputs, out, first_prompt)
    return out


def _run_decodes(inputs: Mamba2Inputs, out: torch.Tensor, num_decodes: int) -> None:
    constants = decode_constants(inputs.num_heads, inputs.num_groups, inputs.head_dim, inputs.state_size)
    num_blocks = triton.cdiv(inputs.head_dim, constants["BLOCK_P"])
    mamba2_decode_kernel[(inputs.num_heads * num_blocks, num_decodes)](
        *_tensors(inputs),
        inputs.row_counts,
        out,
        inputs.dt_min,
        inputs.dt_max,
        num_decodes,
        *_strides(inputs),
        **constants,
        **launch_options(out.device),
        num_warps=4,
    )


def _run_prompts(inputs: Mamba2Inputs, out: torch.Tensor, first_seq: int) -> None:
    config = prefill_config(out.dtype)
    constants = prefill_constants(config, inputs.num_heads, inputs.num_groups, inputs.head_dim, inputs.state_size)
    num_blocks, num_seqs = triton.cdiv(inputs.head_dim, constants["BLOCK_P"]), inputs.read_slots.shape[0]
    mamba2_prefill_kernel[(inputs.num_heads * num_blocks, num_seqs - first_seq)](
        *_tensors(inputs),
        inputs.query_start_loc,
        inputs.row_counts,
        out,
        inputs.dt_min,
        inputs.dt_max,
        first_seq,
        num_seqs,
        *_strides(inputs),
        **constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _tensors(inputs: Mamba2Inputs) -> tuple[torch.Tensor | None, ...]:
    rows = (inputs.x, inputs.dt, inputs.b, inputs.c, inputs.gate)
    return *rows, inputs.decay, inputs.skip, inputs.dt_bias, inputs.state, inputs.read_slots, inputs.write_slots


def _strides(inputs: Mamba2Inputs) -> tuple[int, ...]:
    rows = (inputs.x, inputs.dt, inputs.b, inputs.c, inputs.x if inputs.gate is None else inputs.gate, inputs.state)
    return tuple(row.stride(0) for row in rows)


@cache
def decode_constants(num_heads: int, num_groups: int, head_dim: int, state_size: int) -> dict[str, int]:
    """Returns the decode kernel's constants that depend on shapes."""
    shape = _shape(num_heads, num_groups, head_dim, state_size)
    most_rows = max(1, _DECODE_ELEMENTS // shape["BLOCK_N"])
    return shape | {"BLOCK_P": min(triton.next_power_of_2(head_dim), most_rows)}


def prefill_config(dtype: torch.dtype) -> PrefillConfig:
    """Returns the configuration for x of this dtype."""
    config = _PREFILL_CONFIGS.get(dtype)
    if config is None:
        raise ValueError(f"mamba2 on a GPU takes {', '.join(map(str, _PREFILL_CONFIGS))}, not {dtype}")
    return config


@cache
def prefill_constants(
    config: PrefillConfig, num_heads: int, num_groups: int, head_dim: int, state_size: int
) -> dict[str, Any]:
    """Returns the prefill kernel's constants that depend on shapes and configuration."""
    shape = _shape(num_heads, num_groups, head_dim, state_size)
    # tl.dot takes at least 16 rows and columns.
    block_n = max(16, shape["BLOCK_N"])
    block_p = max(16, min(triton.next_power_of_2(head_dim), config.max_elements // block_n))
    products = {"CHUNK": config.chunk, "OPERAND": config.operand, "PRECISION": config.precision}
    return shape | products | {"BLOCK_P": block_p, "BLOCK_N": block_n}


def _shape(num_heads: int, num_groups: int, head_dim: int, state_size: int) -> dict[str, int]:
    return {
        "NUM_HEADS": num_heads,
        "HEADS_PER_GROUP": num_heads // num_groups,
        "HEAD_DIM": head_dim,
        "STATE_SIZE": state_size,
        "BLOCK_N": triton.next_power_of_2(state_size),
    }
