"""sample on a CPU: one row is one piece of work."""

import numpy as np
import torch
from numba import carray, cfunc, float32, int32, int64, njit, uint8

from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.sample.batch import GREEDY_BELOW, SamplingBatch
from pagewire_kernels.sample.cpu_filters import filter_threshold
from pagewire_kernels.sample.cpu_row import apply_penalties, draw, first_largest, is_poisoned, largest, mask_stop_tokens

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _sample_row(logits, vocab_size, temperature, min_p, top_k, top_p, seed, position, values, weights):
    """Draws from one row whose stop tokens and penalties are done with; overwrites it."""
    if temperature < GREEDY_BELOW:
        return first_largest(logits, vocab_size)
    row = carray(pointer(logits, float32), (vocab_size,))
    for i in range(vocab_size):
        row[i] = row[i] / temperature
    threshold = np.float32(-np.inf)
    if min_p > 0 or 0 < top_k < vocab_size or top_p < 1:
        top = largest(logits, vocab_size)
        threshold = filter_threshold(logits, vocab_size, top, min_p, top_k, np.float64(top_p), values, weights)
    return draw(logits, vocab_size, threshold, seed, position)


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (25,))
    num_rows, vocab_size, logits, logits_stride, sampled = a[1], a[2], a[3], a[4], a[5]
    any_penalties, any_stop_mask, max_len, num_stops = a[6], a[7], a[8], a[9]
    temperature = carray(pointer(a[10], float32), (num_rows,))
    top_k = carray(pointer(a[11], int32), (num_rows,))
    top_p = carray(pointer(a[12], float32), (num_rows,))
    min_p = carray(pointer(a[13], float32), (num_rows,))
    presence = carray(pointer(a[14], float32), (num_rows,))
    frequency = carray(pointer(a[15], float32), (num_rows,))
    repetition = carray(pointer(a[16], float32), (num_rows,))
    seeds = carray(pointer(a[17], int64), (num_rows,))
    positions = carray(pointer(a[18], int64), (num_rows,))
    token_ids, slots = a[19], carray(pointer(a[20], int64), (num_rows,))
    num_prompt_tokens = carray(pointer(a[21], int32), (num_rows,))
    num_tokens = carray(pointer(a[22], int32), (num_rows,))
    stop_token_ids, mask_stop = a[23], carray(pointer(a[24], uint8), (num_rows,))
    out = carray(pointer(sampled, int64), (num_rows,))
    counts = np.zeros(vocab_size if any_penalties != 0 else 0, np.int32)
    values, weights = np.empty(vocab_size, np.float32), np.empty(vocab_size, np.float32)
    while True:
        row = take(args, 1)
        if row >= num_rows:
            return
        x = logits + 4 * row * logits_stride
        if is_poisoned(x, vocab_size):
            out[row] = -1
            continue
        if any_stop_mask != 0 and mask_stop[row] != 0:
            mask_stop_tokens(x, vocab_size, stop_token_ids + 4 * row * num_stops, num_stops)
        r, f, p = repetition[row], frequency[row], presence[row]
        if any_penalties != 0 and (r != 1 or f != 0 or p != 0):
            tokens = token_ids + 4 * slots[row] * max_len
            known = np.int64(num_tokens[row])
            apply_penalties(x, vocab_size, tokens, np.int64(num_prompt_tokens[row]), known, r, f, p, counts)
        token = _sample_row(
            x,
            vocab_size,
            temperature[row],
            min_p[row],
            np.int64(top_k[row]),
            top_p[row],
            seeds[row],
            positions[row],
            values,
            weights,
        )
        out[row] = token if carray(pointer(x, float32), (vocab_size,))[token] > -np.inf else -1


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _greedy_worker(args):
    a = carray(args, (6,))
    num_rows, vocab_size, logits, logits_stride = a[1], a[2], a[3], a[4]
    out = carray(pointer(a[5], int64), (num_rows,))
    while True:
        row = take(args, 1)
        if row >= num_rows:
            return
        x = logits + 4 * row * logits_stride
        token = first_largest(x, vocab_size)
        is_sound = carray(pointer(x, float32), (vocab_size,))[token] > -np.inf and not is_poisoned(x, vocab_size)
        out[row] = token if is_sound else -1


_ADDRESS: int = _worker.address
_GREEDY_ADDRESS: int = _greedy_worker.address


def sample(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """See the package."""
    if logits.dtype is not torch.float32 or logits.stride(1) != 1:
        raise ValueError("logits must be float32 with contiguous rows")
    if params.token_ids.dtype is not torch.int32 or params.token_ids.stride(1) != 1:
        raise ValueError("token_ids must be int32 with contiguous rows")
    num_rows, vocab_size = logits.shape
    sampled = torch.empty(num_rows, dtype=torch.int64)
    num_threads = team_size(num_rows * vocab_size)
    shape = (num_rows, vocab_size, logits.data_ptr(), logits.stride(0), sampled.data_ptr())
    if params.all_greedy and not params.any_penalties and not params.any_stop_mask:
        launch(_GREEDY_ADDRESS, num_threads, shape)
        return sampled
    # Held until the launch is over: a converted copy must outlive its address.
    tensors = (
        _as(params.temperature, torch.float32),
        _as(params.top_k, torch.int32),
        _as(params.top_p, torch.float32),
        _as(params.min_p, torch.float32),
        _as(params.presence_penalty, torch.float32),
        _as(params.frequency_penalty, torch.float32),
        _as(params.repetition_penalty, torch.float32),
        _as(params.seeds, torch.int64),
        _as(params.positions, torch.int64),
        params.token_ids,
        _as(params.slots, torch.int64),
        _as(params.num_prompt_tokens, torch.int32),
        _as(params.num_tokens, torch.int32),
        _as(params.stop_token_ids, torch.int32),
        _as(params.mask_stop, torch.bool),
    )
    extra = (params.any_penalties, params.any_stop_mask, params.token_ids.stride(0), params.stop_token_ids.shape[1])
    numbers = tuple(int(value) for value in extra)
    launch(_ADDRESS, num_threads, (*shape, *numbers, *(t.data_ptr() for t in tensors)))
    return sampled


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype is dtype and tensor.is_contiguous():
        return tensor
    return tensor.to(dtype).contiguous()
