"""The stop mask of one row on a CPU."""

import numpy as np
from numba import carray, float32, int32, njit

from pagewire_kernels.cpu.team import FASTMATH, pointer

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def mask_stop_tokens(logits, vocab_size, stop_token_ids, count):
    """Sets the logits of stop tokens to minus infinity; ids outside the vocabulary are padding."""
    row = carray(pointer(logits, float32), (vocab_size,))
    ids = carray(pointer(stop_token_ids, int32), (count,))
    for i in range(count):
        if 0 <= ids[i] < vocab_size:
            row[ids[i]] = -np.inf
