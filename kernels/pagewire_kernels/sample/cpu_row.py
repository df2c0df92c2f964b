"""What sampling does to one row of logits on a CPU. The definitions stand in reference.py; tensors are addresses."""

import numpy as np
from numba import carray, float32, int32, njit

from pagewire_kernels.cpu.simd import MASKED, row_max
from pagewire_kernels.cpu.simd_ir import LANES
from pagewire_kernels.cpu.team import FASTMATH, pointer
from pagewire_kernels.sample.cpu_noise import GROUP, MAX_NOISE, gumbel_group

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_INFINITY_KEY = np.int32(0x7F800000)
_CHUNK = 1024
"""Logits whose maximum is taken at once, a multiple of LANES."""


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def largest(values, count):
    """The largest of `count` values, at least MASKED."""
    num_vectors = count // LANES
    best = row_max(values, num_vectors)
    row = carray(pointer(values, float32), (count,))
    for i in range(num_vectors * LANES, count):
        best = max(best, row[i])
    return best


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def first_largest(values, count):
    """The index of the first of the largest values."""
    best, best_chunk = np.float32(MASKED), 0
    for chunk in range(0, count, _CHUNK):
        candidate = largest(values + 4 * chunk, min(_CHUNK, count - chunk))
        if candidate > best:
            best, best_chunk = candidate, chunk
    row = carray(pointer(values, float32), (count,))
    for i in range(best_chunk, count):
        if row[i] == best:
            return i
    return 0


@njit(nogil=True, error_model="numpy", cache=True)
def is_poisoned(values, count):
    """Whether NaN or plus infinity is among `count` values. Looks at bits, in the order of floats: integers vectorise,
    and no rule of fast arithmetic applies to them."""
    bits = carray(pointer(values, int32), (count,))
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for i in range(count):
        key = np.int32(bits[i] ^ np.int32(np.int32(bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        high = max(high, key)
        low = min(low, key)
    return high >= _INFINITY_KEY or low < ~_INFINITY_KEY


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def mask_stop_tokens(logits, vocab_size, stop_token_ids, count):
    """Sets the logits of stop tokens to minus infinity; ids outside the vocabulary are padding."""
    row = carray(pointer(logits, float32), (vocab_size,))
    ids = carray(pointer(stop_token_ids, int32), (count,))
    for i in range(count):
        if 0 <= ids[i] < vocab_size:
            row[ids[i]] = -np.inf


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
