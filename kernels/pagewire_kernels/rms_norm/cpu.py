"""rms_norm on a CPU, float32: one pass over a row to add and sum squares, one to scale."""

import math

import numpy as np
import torch
from numba import carray, cfunc, float32, njit

from pagewire_kernels.cpu.team import FASTMATH, WORKER, float_bits, from_bits, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _norm_row(x, residual, weight, out, residual_out, hidden, eps):
    """Normalises one row of `hidden` values. The tensors are addresses; residual 0 means none."""
    row = carray(pointer(x, float32), (hidden,))
    scale = carray(pointer(weight, float32), (hidden,))
    normalised = carray(pointer(out, float32), (hidden,))
    if residual != 0:
        old = carray(pointer(residual, float32), (hidden,))
        new = carray(pointer(residual_out, float32), (hidden,))
        for i in range(hidden):
            new[i] = row[i] + old[i]
        row = new
    square_sum = np.float32(0)
    for i in range(hidden):
        square_sum += row[i] * row[i]
    factor = np.float32(1.0 / math.sqrt(square_sum / hidden + eps))
    for i in range(hidden):
        normalised[i] = row[i] * factor * scale[i]


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (14,))
    num_rows, rows_per_take, num_inner, outer_stride, inner_stride, hidden = a[1], a[2], a[3], a[4], a[5], a[6]
    x, weight, out, residual, residual_stride, residual_out = a[7], a[8], a[9], a[10], a[11], a[12]
    eps = from_bits(a[13])
    while True:
        first = take(args, rows_per_take)
        if first >= num_rows:
            return
        for row in range(first, min(first + rows_per_take, num_rows)):
            outer, inner = row // num_inner, row % num_inner
            row_x = x + 4 * (outer * outer_stride + inner * inner_stride)
            row_residual = residual + 4 * row * residual_stride if residual != 0 else 0
            offset = 4 * row * hidden
            _norm_row(row_x, row_residual, weight, out + offset, residual_out + offset, hidden, eps)


_ADDRESS: int = _worker.address


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See the package; x and weight float32."""
    if x.dim() != 3 or residual is not None:
        shape, x = x.shape, x.reshape(-1, 1, x.shape[-1])
    else:
        shape = x.shape
    num_outer, num_inner, hidden = x.shape
    outer_stride, inner_stride, stride = x.stride()
    if stride != 1:
        raise ValueError("the last dimension of x must be contiguous")
    out = torch.empty(shape)
    num_threads = team_size(out.numel())
    num_rows = num_outer * num_inner
    rows_per_take = max(1, num_rows // (4 * num_threads))
    head = (num_rows, rows_per_take, num_inner, outer_stride, inner_stride, hidden)
    tensors = (x.data_ptr(), weight.data_ptr(), out.data_ptr())
    if residual is None:
        launch(_ADDRESS, num_threads, (*head, *tensors, 0, 0, 0, float_bits(eps)))
        return out
    residual = residual.reshape(num_rows, hidden)
    residual_out = torch.empty(shape)
    added = (residual.data_ptr(), residual.stride(0), residual_out.data_ptr())
    launch(_ADDRESS, num_threads, (*head, *tensors, *added, float_bits(eps)))
    return out, residual_out
