"""mamba2 on a CPU, float32: distributes the heads of all sequences over the threads, each of which runs its tokens one
by one.

A head's state stays in the first-level cache meanwhile, and the whole recurrence takes a few hundredths of the time of
the projections around it. Sums do not depend on where a prompt is cut, nor on other sequences, so neither do the bits.
"""

import math

import numpy as np
import torch
from numba import carray, cfunc, float32, int32, njit

from pagewire_kernels.cpu.simd import exp
from pagewire_kernels.cpu.team import FASTMATH, WORKER, float_bits, from_bits, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.mamba2.inputs import Mamba2Inputs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _step_length(raw, low, high):
    """softplus within limits. Beyond 20 it is the identity, as torch has it."""
    length = raw if raw > 20 else math.log1p(math.exp(raw))
    return min(max(length, low), high)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _step(state, x, b, c, out, head_dim, state_size, decay, length, skip):
    """One token of one head; tensors are addresses."""
    values = carray(pointer(x, float32), (head_dim,))
    inputs, outputs = carray(pointer(b, float32), (state_size,)), carray(pointer(c, float32), (state_size,))
    results = carray(pointer(out, float32), (head_dim,))
    for p in range(head_dim):
        row = carray(pointer(state + 4 * p * state_size, float32), (state_size,))
        scaled, total = length * values[p], np.float32(0)
        for n in range(state_size):
            row[n] = row[n] * decay + scaled * inputs[n]
            total += row[n] * outputs[n]
        results[p] = total + skip * values[p]


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _gate(gate, out, head_dim):
    """out *= silu(gate)."""
    gates, results = carray(pointer(gate, float32), (head_dim,)), carray(pointer(out, float32), (head_dim,))
    for p in range(head_dim):
        results[p] *= gates[p] / (np.float32(1) + exp(-gates[p]))


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _begin(state, slot_stride, head_offset, read_slot, write_slot, count):
    """Leaves the head's state before the first token in the write slot; returns its address."""
    target = state + 4 * (np.int64(write_slot) * slot_stride + head_offset)
    if read_slot != write_slot:
        written = carray(pointer(target, float32), (count,))
        if read_slot < 0:
            written[:] = 0
        else:
            source = state + 4 * (np.int64(read_slot) * slot_stride + head_offset)
            written[:] = carray(pointer(source, float32), (count,))
    return target


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (28,))
    num_seqs, num_heads, head_dim, num_groups, state_size = a[1], a[2], a[3], a[4], a[5]
    x, x_stride, dt, dt_stride, b, b_stride, c, c_stride = a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13]
    gate, gate_stride, state, slot_stride, out = a[14], a[15], a[16], a[17], a[18]
    decays = carray(pointer(a[19], float32), (num_heads,))
    skips = carray(pointer(a[20], float32), (num_heads,))
    biases = carray(pointer(a[21], float32), (num_heads,))
    read_slots = carray(pointer(a[22], int32), (num_seqs,))
    write_slots = carray(pointer(a[23], int32), (num_seqs,))
    starts = carray(pointer(a[24], int32), (num_seqs + 1,))
    low, high = np.float32(from_bits(a[25])), np.float32(from_bits(a[26]))
    while True:
        item = take(args, 1)
        if item >= num_seqs * num_heads:
            return
        seq, head = item // num_heads, item % num_heads
        if starts[seq] == starts[seq + 1]:
            continue
        group = head // (num_heads // num_groups)
        count = head_dim * state_size
        own = _begin(state, slot_stride, head * count, read_slots[seq], write_slots[seq], count)
        for token in range(np.int64(starts[seq]), np.int64(starts[seq + 1])):
            raw = carray(pointer(dt + 4 * (token * dt_stride + head), float32), (1,))[0] + biases[head]
            length = np.float32(_step_length(raw, low, high))
            decay = np.float32(math.exp(length * decays[head]))
            head_x = x + 4 * (token * x_stride + head * head_dim)
            head_b = b + 4 * (token * b_stride + group * state_size)
            head_c = c + 4 * (token * c_stride + group * state_size)
            head_out = out + 4 * (token * num_heads + head) * head_dim
            _step(own, head_x, head_b, head_c, head_out, head_dim, state_size, decay, length, skips[head])
            if gate != 0:
                _gate(gate + 4 * (token * gate_stride + head * head_dim), head_out, head_dim)


_ADDRESS: int = _worker.address


def mamba2(inputs: Mamba2Inputs) -> torch.Tensor:
    """See the package; float32, decodes and prompts alike."""
    x, gate = inputs.x, inputs.gate
    if x.dtype is not torch.float32:
        raise ValueError(f"the CPU's mamba2 is float32, not {x.dtype}")
    out = torch.empty(x.shape)
    args = (
        inputs.read_slots.shape[0],
        inputs.num_heads,
        inputs.head_dim,
        inputs.num_groups,
        inputs.state_size,
        x.data_ptr(),
        x.stride(0),
        inputs.dt.data_ptr(),
        inputs.dt.stride(0),
        inputs.b.data_ptr(),
        inputs.b.stride(0),
        inputs.c.data_ptr(),
        inputs.c.stride(0),
        0 if gate is None else gate.data_ptr(),
        0 if gate is None else gate.stride(0),
        inputs.state.data_ptr(),
        inputs.state.stride(0),
        out.data_ptr(),
        inputs.decay.data_ptr(),
        inputs.skip.data_ptr(),
        inputs.dt_bias.data_ptr(),
        inputs.read_slots.data_ptr(),
        inputs.write_slots.data_ptr(),
        inputs.query_start_loc.data_ptr(),
        float_bits(inputs.dt_min),
        float_bits(inputs.dt_max),
    )
    launch(_ADDRESS, team_size(out.numel() * inputs.state_size), args)
    return out
