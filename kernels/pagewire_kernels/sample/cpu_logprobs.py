"""gather_logprobs on a CPU: one row is one piece of work."""

import math

import numpy as np
import torch
from numba import carray, cfunc, float32, int64, njit

from pagewire_kernels.cpu.simd import exp
from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.sample.cpu_row import largest

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

MAX_TOP = 256
"""Most tokens that are reported: inserting them one by one takes longer than sorting from some hundred on."""
_CHUNK = 256
"""Logits that are passed over together when none of them reaches the top."""


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _top(logits, vocab_size, ids, values):
    """Fills ids and values with the largest logits, best first, of equals the first."""
    row = carray(pointer(logits, float32), (vocab_size,))
    num_top = ids.size
    for place in range(num_top):
        values[place], ids[place] = -np.inf, -1
    for chunk in range(0, vocab_size, _CHUNK):
        end = min(chunk + _CHUNK, vocab_size)
        if ids[num_top - 1] >= 0 and largest(logits + 4 * chunk, end - chunk) <= values[num_top - 1]:
            continue
        for token in range(chunk, end):
            value = row[token]
            if value <= values[num_top - 1] and ids[num_top - 1] >= 0:
                continue
            place = num_top - 1
            while place > 0 and (ids[place - 1] < 0 or value > values[place - 1]):
                values[place], ids[place] = values[place - 1], ids[place - 1]
                place -= 1
            values[place], ids[place] = value, token


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (12,))
    num_rows, vocab_size, num_top, logits, logits_stride = a[1], a[2], a[3], a[4], a[5]
    sampled = carray(pointer(a[6], int64), (num_rows,))
    logprobs = carray(pointer(a[7], float32), (num_rows,))
    ranks = carray(pointer(a[8], int64), (num_rows,))
    top_ids = carray(pointer(a[9], int64), (num_rows, num_top))
    top_logprobs = carray(pointer(a[10], float32), (num_rows, num_top))
    normalisers = carray(pointer(a[11], float32), (num_rows,))
    while True:
        r = take(args, 1)
        if r >= num_rows:
            return
        address = logits + 4 * r * logits_stride
        row = carray(pointer(address, float32), (vocab_size,))
        top = largest(address, vocab_size)
        chosen = row[sampled[r]]
        total, rank = 0.0, 1
        for value in row:
            total += exp(value - top)
            rank += value > chosen
        normaliser = top + np.float32(math.log(total))
        logprobs[r], ranks[r], normalisers[r] = chosen - normaliser, rank, normaliser
        if num_top > 0:
            _top(address, vocab_size, top_ids[r], top_logprobs[r])
            for place in range(num_top):
                top_logprobs[r, place] -= normaliser


_ADDRESS: int = _worker.address


def gather_logprobs(logits: torch.Tensor, sampled: torch.Tensor, num_top: int) -> tuple[torch.Tensor, ...]:
    """See the package; also returns the logarithm of the sum of each row's exponentials, [num_rows] float32.

    Args:
        num_top: At most MAX_TOP and vocab_size.
    """
    if logits.dtype is not torch.float32 or logits.stride(1) != 1:
        raise ValueError("logits must be float32 with contiguous rows")
    num_rows, vocab_size = logits.shape
    chosen = sampled.to(torch.int64).contiguous()
    logprobs, normalisers, top_logprobs = torch.empty(num_rows), torch.empty(num_rows), torch.empty(num_rows, num_top)
    ranks, top_ids = torch.empty(num_rows, dtype=torch.int64), torch.empty((num_rows, num_top), dtype=torch.int64)
    shape = (num_rows, vocab_size, num_top, logits.data_ptr(), logits.stride(0), chosen.data_ptr())
    outputs = (logprobs, ranks, top_ids, top_logprobs, normalisers)
    addresses = tuple([output.data_ptr() for output in outputs])
    launch(_ADDRESS, team_size(num_rows * vocab_size), (*shape, *addresses))
    return outputs
