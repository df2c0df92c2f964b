"""The tokens that rows may sample, on a CPU: logits without the others."""

import torch
from numba import carray, cfunc, int64

from pagewire_kernels.cpu.team import FASTMATH, WORKER, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.columns import BAD_WORDS_WIDTH, INTS
from pagewire_kernels.sample.cpu_arguments import batch_arguments
from pagewire_kernels.sample.cpu_bans import keep_allowed
from pagewire_kernels.sample.cpu_logits import take_stop_tokens, take_tokens

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_NUM_INTS = len(INTS)


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (22,))
    num_rows, vocab_size, logits, logits_stride = a[1], a[2], a[3], a[4]
    slots = carray(pointer(a[5], int64), (num_rows,))
    all_ints, allowed, num_words, bad_words = a[7], a[9], a[10], a[11]
    num_tokens_of_all, num_tokens_stride, token_ids, max_len = a[12], a[13], a[14], a[15]
    stop_token_ids, num_stops = a[16], a[17]
    masks, mask_stride, mask_rows = a[19], a[20], carray(pointer(a[21], int64), (num_rows,))
    while True:
        row = take(args, 1)
        if row >= num_rows:
            return
        x, slot = logits + 4 * row * logits_stride, slots[row]
        ints = carray(pointer(all_ints + 8 * slot * _NUM_INTS, int64), (_NUM_INTS,))
        num_tokens = carray(pointer(num_tokens_of_all + 8 * slot * num_tokens_stride, int64), (1,))[0]
        if masks != 0 and mask_rows[row] >= 0:
            keep_allowed(x, vocab_size, masks + 4 * mask_rows[row] * mask_stride)
        own_bad_words, own_tokens = bad_words + 4 * slot * BAD_WORDS_WIDTH, token_ids + 4 * slot * max_len
        take_tokens(x, vocab_size, ints, allowed + 4 * slot * num_words, own_bad_words, own_tokens, num_tokens)
        take_stop_tokens(x, vocab_size, ints, stop_token_ids + 4 * slot * num_stops, num_stops, num_tokens)


_ADDRESS: int = _worker.address


def taken(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """A copy of float32 logits, minus infinity where a row may not sample a token."""
    out = logits.clone(memory_format=torch.contiguous_format)
    num_rows, vocab_size = out.shape
    slots, arguments = batch_arguments(batch)
    shape = (num_rows, vocab_size, out.data_ptr(), out.stride(0), slots.data_ptr())
    launch(_ADDRESS, team_size(num_rows * vocab_size), (*shape, *arguments))
    return out
