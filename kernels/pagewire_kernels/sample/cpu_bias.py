"""The biases of one row on a CPU."""

from numba import carray, float32, int32, njit

from pagewire_kernels.cpu.team import FASTMATH, pointer

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def add_biases(logits, vocab_size, token_ids, biases, count):
    """Adds `count` biases to the logits of their tokens."""
    row = carray(pointer(logits, float32), (vocab_size,))
    ids = carray(pointer(token_ids, int32), (count,))
    values = carray(pointer(biases, float32), (count,))
    for i in range(count):
        row[ids[i]] += values[i]
