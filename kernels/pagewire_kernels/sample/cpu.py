"""sample on a CPU: one row is one piece of work, which passes through all stages."""

import numpy as np
import torch
from numba import carray, cfunc, float32, int64, njit

from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.columns import (
    BAD_WORDS_WIDTH,
    FLOATS,
    GREEDY_BELOW,
    INTS,
    LIST_WIDTH,
    Stage,
    float_column,
    int_column,
)
from pagewire_kernels.sample.cpu_arguments import batch_arguments
from pagewire_kernels.sample.cpu_bans import keep_allowed
from pagewire_kernels.sample.cpu_draw import draw
from pagewire_kernels.sample.cpu_filters import filter_threshold
from pagewire_kernels.sample.cpu_logits import change_logits
from pagewire_kernels.sample.cpu_row import first_largest, is_poisoned, largest

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

# numba takes globals for constants of the machine code.
_NUM_FLOATS, _NUM_INTS, _PENALTIES = len(FLOATS), len(INTS), int(Stage.PENALTIES)
_TEMPERATURE, _TOP_P, _MIN_P = (float_column(name) for name in ("temperature", "top_p", "min_p"))
_TOP_K, _SEED = int_column("top_k"), int_column("seed")


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _choose(logits, vocab_size, floats, ints, position, values, weights):
    """The token of one row whose logits have been changed as they are to be; overwrites the row."""
    temperature, min_p, top_p, top_k = floats[_TEMPERATURE], floats[_MIN_P], floats[_TOP_P], ints[_TOP_K]
    if temperature < GREEDY_BELOW:
        return first_largest(logits, vocab_size)
    row = carray(pointer(logits, float32), (vocab_size,))
    for i in range(vocab_size):
        row[i] = row[i] / temperature
    threshold = np.float32(-np.inf)
    if min_p > 0 or 0 < top_k < vocab_size or top_p < 1:
        top = largest(logits, vocab_size)
        threshold = filter_threshold(logits, vocab_size, top, min_p, top_k, np.float64(top_p), values, weights)
    return draw(logits, vocab_size, threshold, ints[_SEED], position)


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (23,))
    num_rows, vocab_size, logits, logits_stride, sampled = a[1], a[2], a[3], a[4], a[5]
    slots = carray(pointer(a[6], int64), (num_rows,))
    all_floats, all_ints, lists, allowed, num_words, bad_words = a[7], a[8], a[9], a[10], a[11], a[12]
    num_tokens_of_all, num_tokens_stride, token_ids, max_len = a[13], a[14], a[15], a[16]
    stop_token_ids, num_stops, stages = a[17], a[18], a[19]
    masks, mask_stride, mask_rows = a[20], a[21], carray(pointer(a[22], int64), (num_rows,))
    out = carray(pointer(sampled, int64), (num_rows,))
    counts = np.zeros(vocab_size if stages & _PENALTIES else 0, np.int32)
    values, weights = np.empty(vocab_size, np.float32), np.empty(vocab_size, np.float32)
    while True:
        row = take(args, 1)
        if row >= num_rows:
            return
        x = logits + 4 * row * logits_stride
        if is_poisoned(x, vocab_size):
            out[row] = -1
            continue
        slot = slots[row]
        floats = carray(pointer(all_floats + 4 * slot * _NUM_FLOATS, float32), (_NUM_FLOATS,))
        ints = carray(pointer(all_ints + 8 * slot * _NUM_INTS, int64), (_NUM_INTS,))
        num_tokens = carray(pointer(num_tokens_of_all + 8 * slot * num_tokens_stride, int64), (1,))[0]
        if masks != 0 and mask_rows[row] >= 0:
            keep_allowed(x, vocab_size, masks + 4 * mask_rows[row] * mask_stride)
        change_logits(
            x,
            vocab_size,
            floats,
            ints,
            lists + 4 * slot * LIST_WIDTH,
            allowed + 4 * slot * num_words,
            bad_words + 4 * slot * BAD_WORDS_WIDTH,
            token_ids + 4 * slot * max_len,
            num_tokens,
            stop_token_ids + 4 * slot * num_stops,
            num_stops,
            stages,
            counts,
        )
        token = _choose(x, vocab_size, floats, ints, num_tokens, values, weights)
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


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """See the package."""
    if logits.dtype is not torch.float32 or logits.stride(1) != 1:
        raise ValueError("logits must be float32 with contiguous rows")
    num_rows, vocab_size = logits.shape
    sampled = torch.empty(num_rows, dtype=torch.int64)
    num_threads = team_size(num_rows * vocab_size)
    shape = (num_rows, vocab_size, logits.data_ptr(), logits.stride(0), sampled.data_ptr())
    if not batch.stages:
        launch(_GREEDY_ADDRESS, num_threads, shape)
        return sampled
    slots, arguments = batch_arguments(batch)
    launch(_ADDRESS, num_threads, (*shape, slots.data_ptr(), *arguments))
    return sampled
