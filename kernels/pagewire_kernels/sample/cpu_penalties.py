"""The penalties of one row on a CPU."""

import numpy as np
from numba import carray, float32, int32, njit

from pagewire_kernels.cpu.team import FASTMATH, pointer

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def apply_penalties(
    logits, vocab_size, token_ids, num_prompt_tokens, num_tokens, repetition, frequency, presence, counts
):
    """Repetition, frequency and presence penalty, in time linear in the tokens. counts: [vocab_size] int32 zeros."""
    row = carray(pointer(logits, float32), (vocab_size,))
    tokens = carray(pointer(token_ids, int32), (num_tokens,))
    # counts is 0 for tokens not met yet, then 1 + how often the output holds the token.
    for token in tokens:
        if counts[token] == 0:
            counts[token] = 1
            row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for i in range(num_prompt_tokens, num_tokens):
        counts[tokens[i]] += 1
    for i in range(num_prompt_tokens, num_tokens):
        count = counts[tokens[i]] - 1
        if count > 0:
            row[tokens[i]] = (row[tokens[i]] - frequency * np.float32(count)) - presence
            counts[tokens[i]] = 1
    for token in tokens:
        counts[token] = 0
