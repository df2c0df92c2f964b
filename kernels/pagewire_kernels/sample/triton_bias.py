"""The biases of one chunk of one row on a GPU."""

import triton
import triton.language as tl

from pagewire_kernels.sample import columns
from pagewire_kernels.sample.columns import int_column
from pagewire_kernels.sample.triton_row import NUM_INTS

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_NUM_BIASES = tl.constexpr(int_column("num_biases"))
_MAX_BIASES = tl.constexpr(columns.MAX_BIASES)
_AT_ONCE = tl.constexpr(256)
"""Entries that are looked at together: two for each thread of a chunk."""


@triton.jit
def load_num_biases(ints_ptr, slot):
    """How many biases the slot's sequence has."""
    return tl.load(ints_ptr + slot * NUM_INTS + _NUM_BIASES).to(tl.int32)


@triton.jit
def add_biases(
    x, scratch_ptr, token_ids_ptr, biases_ptr, slot, num_biases, num_in_chunk, first_token, CHUNK: tl.constexpr
):
    """Adds the biases of tokens in the chunk. x: [CHUNK] float32. scratch_ptr: CHUNK floats of the program's own."""
    offset = tl.arange(0, CHUNK)
    tl.store(scratch_ptr + offset, 0.0, mask=offset < num_in_chunk)
    token_ids_ptr += slot * _MAX_BIASES
    biases_ptr += slot * _MAX_BIASES
    # Between the barriers each thread writes where others have cleared and will read. No token comes twice.
    tl.debug_barrier()
    for first in range(0, num_biases, _AT_ONCE):
        place = first + tl.arange(0, _AT_ONCE)
        is_bias = place < num_biases
        token = tl.load(token_ids_ptr + place, mask=is_bias, other=-1) - first_token  # [_AT_ONCE]
        bias = tl.load(biases_ptr + place, mask=is_bias, other=0.0)
        tl.store(scratch_ptr + token, bias, mask=(token >= 0) & (token < num_in_chunk))
    tl.debug_barrier()
    x += tl.load(scratch_ptr + offset, mask=offset < num_in_chunk, other=0.0)
    # The next stage may use the scratch space.
    tl.debug_barrier()
    return x
