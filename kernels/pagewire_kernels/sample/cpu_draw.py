"""The draw of one row's token on a CPU."""

import numpy as np
from numba import carray, float32, njit

from pagewire_kernels.cpu.team import FASTMATH, pointer
from pagewire_kernels.sample.cpu_noise import GROUP, MAX_NOISE, gumbel_group
from pagewire_kernels.sample.cpu_row import first_largest, largest

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def draw(logits, vocab_size, threshold, seed, position):
    """The token of at least `threshold` with the largest logit + noise. Noise is made only where it can win."""
    row = carray(pointer(logits, float32), (vocab_size,))
    noise, noisy = np.empty(GROUP, np.float32), np.empty(GROUP, np.float32)
    best, best_token = np.float32(-np.inf), 0
    likely_group = first_largest(logits, vocab_size) // GROUP
    # The most probable token's group first: the others must beat it.
    for turn in range(-1, (vocab_size + GROUP - 1) // GROUP):
        group = likely_group if turn < 0 else turn
        first = group * GROUP
        count = min(GROUP, vocab_size - first)
        top = largest(logits + 4 * first, count)
        if turn == likely_group or top < threshold or top + np.float32(MAX_NOISE) < best:
            continue
        gumbel_group(seed, position, group, noise.ctypes.data)
        noisy[:] = -np.inf
        for i in range(count):
            logit = row[first + i]
            noisy[i] = logit + noise[i] if logit >= threshold else np.float32(-np.inf)
        if largest(noisy.ctypes.data, GROUP) < best:
            continue
        winner = first_largest(noisy.ctypes.data, count)
        token = first + winner
        if noisy[winner] > best or (noisy[winner] == best and token < best_token):
            best, best_token = noisy[winner], token
    return best_token
