"""Functions of each element on a CPU, float32, whose bits depend on the element alone.

torch's depend on the element's place in memory: the last ones of a tensor, which fill no vector, are computed by
another function. Here a token's bits are the same whatever else is in the batch.
"""

import numpy as np
import torch
from numba import carray, cfunc, float32

from pagewire_kernels.cpu.simd import exp
from pagewire_kernels.cpu.team import WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_ELEMENTS_PER_TAKE = 4096


# Without fast-math flags: with them vectors would be divided by an approximation, and single elements exactly.
@cfunc(WORKER, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (4,))
    count, x, is_silu = a[1], a[2], a[3]
    one = np.float32(1)
    while True:
        first = take(args, _ELEMENTS_PER_TAKE)
        if first >= count:
            return
        num = min(_ELEMENTS_PER_TAKE, count - first)
        values = carray(pointer(x + 4 * first, float32), (num,))
        if is_silu:
            for i in range(num):
                values[i] = values[i] / (one + exp(-values[i]))
        else:
            for i in range(num):
                values[i] = one / (one + exp(-values[i]))


_ADDRESS: int = _worker.address


def silu_(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x), in place; contiguous, float32."""
    return _apply(x, is_silu=True)


def sigmoid_(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-x)), in place; contiguous, float32."""
    return _apply(x, is_silu=False)


def _apply(x: torch.Tensor, *, is_silu: bool) -> torch.Tensor:
    if x.dtype is not torch.float32 or not x.is_contiguous():
        raise ValueError("x must be contiguous and float32")
    launch(_ADDRESS, team_size(x.numel()), (x.numel(), x.data_ptr(), int(is_silu)))
    return x
