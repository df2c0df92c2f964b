"""Makes a forward pass's inputs from slots and query lengths, entirely on the device."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.prepare_inputs.inputs import PreparedInputs
from pagewire_kernels.sequence_state import SequenceState

__all__ = ["PreparedInputs", "prepare_inputs"]


def prepare_inputs(
    state: SequenceState,
    slots: torch.Tensor,
    query_lens: torch.Tensor | None,
    *,
    block_size: int,
    num_tokens: int,
    max_blocks: int,
) -> PreparedInputs:
    """Takes the next query_lens[i] tokens that sequence slots[i] has not computed.

    Nothing is read back, so that it can be part of a CUDA graph.

    Args:
        state: As it is before the pass; not changed.
        slots: [num_rows] int64. Live rows have distinct slots.
        query_lens: [num_rows] int64 or int32, on slots' device; None: one token each.
        block_size: Tokens of a block.
        num_tokens: Rows of the pass, at least the sum of query_lens; what is more is padding.
        max_blocks: Columns of the gathered block tables, enough for the longest sequence.

    reference.py is the definition of correct.
    """
    return _backend(slots.device.type)(state, slots, query_lens, block_size, num_tokens, max_blocks)


@cache
def _backend(device_type: str) -> Callable[..., PreparedInputs]:
    if device_type == "cuda":
        from pagewire_kernels.prepare_inputs.triton import prepare_inputs as triton_kernel

        return triton_kernel
    if device_type == "cpu":
        from pagewire_kernels.prepare_inputs.cpu import prepare_inputs as cpu

        return cpu
    from pagewire_kernels.prepare_inputs.reference import prepare_inputs as reference

    return reference
