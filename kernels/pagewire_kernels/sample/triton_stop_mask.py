"""The stop mask of one chunk of one row on a GPU."""

import triton
import triton.language as tl

from pagewire_kernels.sample.columns import int_column
from pagewire_kernels.sample.triton_row import NUM_INTS

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_MIN_LEN = tl.constexpr(int_column("min_len"))


@triton.jit
def masks_stop(ints_ptr, slot, num_tokens):
    """The slot's sequence is too short to stop."""
    return num_tokens < tl.load(ints_ptr + slot * NUM_INTS + _MIN_LEN)


@triton.jit
def mask_stop_tokens(x, token, stop_ptr, NUM_STOPS: tl.constexpr):
    """Sets the logits of stop tokens to minus infinity; ids that are none of these tokens do nothing."""
    for stop in range(NUM_STOPS):
        x = tl.where(token == tl.load(stop_ptr + stop), float("-inf"), x)
    return x
