"""silu_and_mul and the tanh form of gelu_and_mul on a CPU, float32. The exact form is left to torch, which has erf."""

import torch
from numba import carray, cfunc

from pagewire_kernels.cpu.gated import GATED_KINDS, activate_columns
from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, take
from pagewire_kernels.cpu.threads import team_size

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_ELEMENTS_PER_TAKE = 4096


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
            activate_columns(kind, gate, gate + 4 * size, out + 4 * row * size, size)


_ADDRESS: int = _worker.address


def activate_and_mul(x: torch.Tensor, kind: str) -> torch.Tensor:
    """activation(gate) * up; kind is a key of GATED_KINDS. See the package."""
    x = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, x.shape[-1])
    num_rows, width = x.shape
    size = width // 2
    out = torch.empty((num_rows, size))
    rows_per_take = max(1, _ELEMENTS_PER_TAKE // size)
    args = (GATED_KINDS[kind], num_rows, rows_per_take, x.data_ptr(), x.stride(0), size, out.data_ptr())
    launch(_ADDRESS, team_size(out.numel()), args)
    return out
