"""Mamba-2's recurrence (state space duality) with the state of each sequence in slots: prompts, chunks of them, decodes
and mixtures."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.mamba2 import reference
from pagewire_kernels.mamba2.inputs import Mamba2Inputs

__all__ = ["Mamba2Inputs", "mamba2"]


def mamba2(inputs: Mamba2Inputs) -> torch.Tensor:
    """Runs the new tokens of each sequence through the recurrence, from its read slot's state to its write slot.

    For each head with decay rate a < 0, step t of length dt changes the state [head_dim, state_size] to
    exp(dt a) * state + dt * x b^T, and yields state c + skip * x.

    Returns:
        [num_tokens, num_heads, head_dim], x's dtype, contiguous. Rows that belong to no sequence are arbitrary.

    Raises:
        ValueError: an input's shape, stride or dtype is not as Mamba2Inputs says.

    Source: Mamba-2, arXiv:2405.21060, sections 2 and 6; reference.py is the definition of correct.
    """
    inputs.check()
    return _backend(inputs.x.device.type)(inputs)


@cache
def _backend(device_type: str) -> Callable[[Mamba2Inputs], torch.Tensor]:
    if device_type == "cpu":
        from pagewire_kernels.mamba2 import cpu

        return cpu.mamba2
    if device_type == "cuda":
        from pagewire_kernels.mamba2.triton import mamba2 as triton_kernel

        return triton_kernel
    return reference.mamba2
