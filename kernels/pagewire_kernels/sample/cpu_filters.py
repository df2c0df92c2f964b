"""min_p, top_k and top_p of one row on a CPU, as one threshold and without sorting the vocabulary.

A token is kept if the weight of the strictly larger logits is below a target: counting them for top_k, adding up their
probabilities for top_p. The smallest kept logit is found by bisection, then exactly by a weighted quickselect among the
few candidates left.
"""

import math

import numpy as np
from numba import carray, float32, njit

from pagewire_kernels.cpu.simd import exp
from pagewire_kernels.cpu.team import FASTMATH, pointer

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_BISECTIONS = 10
_FEW = 64
"""Candidates that are not worth a bisection."""


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _weight_above(values, weights, count, bound):
    """The weight of the values above bound."""
    total = 0.0
    for i in range(count):
        total += np.float64(weights[i]) if values[i] > bound else 0.0
    return total


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _select(values, weights, count, above, target):
    """The smallest value whose strictly larger ones, and `above`, weigh less than target. Reorders both arrays."""
    low, high = 0, count
    while True:
        a, b, c = values[low], values[(low + high) // 2], values[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        # [low, first) is larger than the pivot, [first, i) equal, [last, high) smaller.
        first, i, last = low, low, high
        larger_weight, equal_weight = 0.0, 0.0
        while i < last:
            value, weight = values[i], weights[i]
            if value > pivot:
                values[i], weights[i] = values[first], weights[first]
                values[first], weights[first] = value, weight
                larger_weight += weight
                first += 1
                i += 1
            elif value == pivot:
                equal_weight += weight
                i += 1
            else:
                last -= 1
                values[i], weights[i] = values[last], weights[last]
                values[last], weights[last] = value, weight
        if above + larger_weight >= target and first > low:
            high = first
        elif above + larger_weight + equal_weight >= target or last == high:
            return pivot
        else:
            above += larger_weight + equal_weight
            low = last


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def smallest_kept(values, weights, count, largest, smallest, target):
    """The smallest value whose strictly larger ones weigh less than target > 0. Overwrites both arrays."""
    low, high, above = smallest, largest, 0.0
    if count > _FEW:
        for _ in range(_BISECTIONS):
            middle = np.float32(0.5) * (low + high)
            weight = _weight_above(values, weights, count, middle)
            if weight >= target:
                low = middle
            else:
                high, above = middle, weight
        # Above `high` all is kept and weighs `above`; the answer is in (low, high], or `smallest` itself.
        kept = 0
        for i in range(count):
            if low <= values[i] <= high:
                values[kept], weights[kept] = values[i], weights[i]
                kept += 1
        if kept == 0:
            return high
        count = kept
    return _select(values, weights, count, above, target)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def filter_threshold(logits, vocab_size, largest, min_p, top_k, top_p, values, weights):
    """The smallest logit that min_p, top_k and top_p keep; values and weights are [vocab_size] float32 scratch."""
    row = carray(pointer(logits, float32), (vocab_size,))
    threshold = np.float32(-np.inf)
    if min_p > 0:
        threshold = largest + np.float32(math.log(min_p))
    if 0 < top_k < vocab_size:
        count, smallest = _gather(row, threshold, values)
        weights[:count] = 1
        if count > top_k:
            threshold = max(threshold, smallest_kept(values, weights, count, largest, smallest, np.float64(top_k)))
    if top_p < 1:
        count, smallest = _gather(row, threshold, values)
        total = 0.0
        for i in range(count):
            weights[i] = exp(values[i] - largest)
            total += weights[i]
        threshold = max(threshold, smallest_kept(values, weights, count, largest, smallest, top_p * total))
    return threshold


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _gather(row, threshold, values):
    """Copies the finite values from threshold on; returns how many they are and the smallest."""
    count, smallest = 0, np.float32(np.inf)
    for value in row:
        if value >= threshold and value > -np.inf:
            values[count] = value
            smallest = min(smallest, value)
            count += 1
    return count, smallest
