"""Advances sequences after a forward pass: counts, the sampled token, and whether the sequence stops here."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.sequence_state import SequenceState

__all__ = ["append_tokens"]


def append_tokens(
    state: SequenceState,
    slots: torch.Tensor,
    query_lens: torch.Tensor | None,
    sampled: torch.Tensor,
    sample_rows: torch.Tensor | None,
    *,
    token_reason: int,
    length_reason: int,
    error_reason: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Moves every live row's num_computed on, and appends the token it sampled, in place.

    A sequence that samples one of its stop tokens, or reaches its max_len, stops: its stop_reason is set. Rows whose
    sequence had stopped before stay as they are. A row that was to sample and has -1 for a token stops with nothing
    appended.

    Args:
        state: Its ints and token_ids change.
        slots: [num_rows] int64. Live rows have distinct slots.
        query_lens: [num_rows] int64 or int32: tokens the pass computed of each row; None: one each.
        sampled: [num_samples] int64; -1: the model gave no distribution to sample from.
        sample_rows: [num_rows] int64 or int32: the row's entry in sampled; -1: it does not sample. None: row i samples
            entry i.
        token_reason: The stop_reason of a stop token.
        length_reason: That of max_len; a stop token goes before it.
        error_reason: That of a sampled -1.
        out: Takes the result: [4, num_rows] int64, contiguous.

    Returns:
        [4, num_rows] int64: num_computed and num_tokens after the step, the token appended or -1, stop_reason.

    reference.py is the definition of correct.
    """
    backend = _backend(slots.device.type)
    return backend(state, slots, query_lens, sampled, sample_rows, token_reason, length_reason, error_reason, out)


@cache
def _backend(device_type: str) -> Callable[..., torch.Tensor]:
    if device_type == "cuda":
        from pagewire_kernels.append_tokens.triton import append_tokens as triton_kernel

        return triton_kernel
    if device_type == "cpu":
        from pagewire_kernels.append_tokens.cpu import append_tokens as cpu

        return cpu
    from pagewire_kernels.append_tokens.reference import append_tokens as reference

    return reference
