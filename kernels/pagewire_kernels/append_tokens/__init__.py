"""Advances sequences after a forward pass: counts, the sampled tokens, and whether the sequence stops here."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.append_tokens.inputs import (
    FIRST_TOKEN,
    NUM_COMPUTED,
    NUM_SAMPLED,
    NUM_TOKENS,
    STOP_REASON,
    AppendInputs,
    StopReasons,
)

__all__ = [
    "FIRST_TOKEN",
    "NUM_COMPUTED",
    "NUM_SAMPLED",
    "NUM_TOKENS",
    "STOP_REASON",
    "AppendInputs",
    "StopReasons",
    "append_tokens",
]


def append_tokens(inputs: AppendInputs, out: torch.Tensor | None = None) -> torch.Tensor:
    """Moves every live row's num_computed on, and appends the tokens it sampled, in place.

    A sequence that samples one of its stop tokens, or reaches its max_len, stops: its stop_reason is set, and the row's
    tokens behind that one are dropped. A -1 stops it too, and neither it nor what follows is appended. Draft tokens
    that are not appended do not count as computed: a sequence that has sampled has computed all its tokens but the
    last. Rows whose sequence had stopped before stay as they are.

    Args:
        out: Takes the result; contiguous. A graph writes to the same memory every time.

    Returns:
        [FIRST_TOKEN + max_sampled, num_rows] int64, the report: after the step each row's num_computed, num_tokens,
        stop_reason and num_sampled, the number of tokens appended; then the tokens, -1 beyond num_sampled.

    reference.py is the definition of correct.
    """
    return _backend(inputs.slots.device.type)(inputs, out)


@cache
def _backend(device_type: str) -> Callable[[AppendInputs, torch.Tensor | None], torch.Tensor]:
    if device_type == "cuda":
        from pagewire_kernels.append_tokens.triton import append_tokens as triton_kernel

        return triton_kernel
    if device_type == "cpu":
        from pagewire_kernels.append_tokens.cpu import append_tokens as cpu

        return cpu
    from pagewire_kernels.append_tokens.reference import append_tokens as reference

    return reference
