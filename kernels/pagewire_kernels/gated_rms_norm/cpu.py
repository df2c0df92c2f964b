"""gated_rms_norm on a CPU, float32: one pass over a group to gate and sum squares, one to scale."""

import math

import numpy as np
import torch
from numba import carray, cfunc, float32, njit

from pagewire_kernels.cpu.simd import exp
from pagewire_kernels.cpu.team import FASTMATH, WORKER, float_bits, from_bits, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_ELEMENTS_PER_TAKE = 4096


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _norm_group(x, gate, weight, out, size, eps, norm_first):
    """Normalises one group of `size` values. The tensors are addresses."""
    values, gates = carray(pointer(x, float32), (size,)), carray(pointer(gate, float32), (size,))
    scale, results = carray(pointer(weight, float32), (size,)), carray(pointer(out, float32), (size,))
    one = np.float32(1)
    for i in range(size):
        results[i] = gates[i] / (one + exp(-gates[i]))
    square_sum = np.float32(0)
    if norm_first:
        for i in range(size):
            square_sum += values[i] * values[i]
    else:
        for i in range(size):
            results[i] *= values[i]
            square_sum += results[i] * results[i]
    factor = np.float32(1.0 / math.sqrt(square_sum / size + eps))
    if norm_first:
        for i in range(size):
            results[i] *= values[i] * factor * scale[i]
    else:
        for i in range(size):
            results[i] *= factor * scale[i]


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (14,))
    num_rows, rows_per_take, num_groups, size = a[1], a[2], a[3], a[4]
    x, x_stride, gate, gate_stride = a[5], a[6], a[7], a[8]
    weight, weight_stride, norm_first, out, eps = a[9], a[10], a[11] != 0, a[12], from_bits(a[13])
    while True:
        first = take(args, rows_per_take)
        if first >= num_rows:
            return
        for row in range(first, min(first + rows_per_take, num_rows)):
            for group in range(num_groups):
                column = 4 * group * size
                own_x, own_gate = x + 4 * row * x_stride + column, gate + 4 * row * gate_stride + column
                own_weight, own_out = weight + 4 * group * weight_stride, out + (4 * row * num_groups * size + column)
                _norm_group(own_x, own_gate, own_weight, own_out, size, eps, norm_first)


_ADDRESS: int = _worker.address


def gated_rms_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int, norm_first: bool
) -> torch.Tensor:
    """See the package; float32."""
    if x.dtype is not torch.float32:
        raise ValueError(f"the CPU's gated_rms_norm is float32, not {x.dtype}")
    num_rows, width = x.shape
    weight = weight.float()
    out = torch.empty((num_rows, width))
    args = (
        num_rows,
        max(1, _ELEMENTS_PER_TAKE // width),
        width // group_size,
        group_size,
        x.data_ptr(),
        x.stride(0),
        gate.data_ptr(),
        gate.stride(0),
        weight.data_ptr(),
        0 if weight.shape[0] == group_size else group_size,
        int(norm_first),
        out.data_ptr(),
        float_bits(eps),
    )
    launch(_ADDRESS, team_size(out.numel()), args)
    return out
