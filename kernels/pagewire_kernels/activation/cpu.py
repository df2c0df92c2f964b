"""silu_and_mul and the tanh form of gelu_and_mul on a CPU, float32. The exact form is left to torch, which has erf."""

import math

import numpy as np
import torch
from numba import carray, cfunc, float32, njit

from pagewire_kernels.cpu.simd import exp
from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_KINDS = {"silu": 0, "gelu_tanh": 1}
_SQRT_8_OVER_PI = np.float32(math.sqrt(8.0 / math.pi))
_ELEMENTS_PER_TAKE = 4096


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _activate(kind, gate, up, out, count):
    """out = activation(gate) * up for `count` elements; tensors are addresses."""
    g = carray(pointer(gate, float32), (count,))
    u = carray(pointer(up, float32), (count,))
    o = carray(pointer(out, float32), (count,))
    one = np.float32(1)
    if kind == 0:
        for i in range(count):
            o[i] = g[i] * u[i] / (one + exp(-g[i]))
    else:
        # (1 + tanh(y)) / 2 = 1 / (1 + exp(-2y))
        for i in range(count):
            x = g[i]
            o[i] = x * u[i] / (one + exp(-_SQRT_8_OVER_PI * (x + np.float32(0.044715) * x * x * x)))


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (8,))
    kind, num_rows, rows_per_take, x, row_stride, size, out = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    while True:
        first = take(args, rows_per_take)
        if first >= num_rows:
            return
        for row in range(first, min(first + rows_per_take, num_rows)):
            gate = x + 4 * row * row_stride
            _activate(kind, gate, gate + 4 * size, out + 4 * row * size, size)


_ADDRESS: int = _worker.address


def activate_and_mul(x: torch.Tensor, kind: str) -> torch.Tensor:
    """activation(gate) * up; kind is a key of _KINDS. See the package."""
    x = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, x.shape[-1])
    num_rows, width = x.shape
    size = width // 2
    out = torch.empty((num_rows, size))
    rows_per_take = max(1, _ELEMENTS_PER_TAKE // size)
    args = (_KINDS[kind], num_rows, rows_per_take, x.data_ptr(), x.stride(0), size, out.data_ptr())
    launch(_ADDRESS, team_size(out.numel()), args)
    return out
