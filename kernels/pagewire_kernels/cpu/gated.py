"""Gated activations on a CPU, float32: silu and the tanh form of gelu."""

import math

import numpy as np
from numba import carray, float32, njit

from pagewire_kernels.cpu.simd import exp
from pagewire_kernels.cpu.team import FASTMATH, pointer

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

GATED_KINDS = {"silu": 0, "gelu_tanh": 1}
"""The number by which compiled kernels know an activation."""
_SQRT_8_OVER_PI = np.float32(math.sqrt(8.0 / math.pi))


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def activate_columns(kind, gate, up, out, count):
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
