"""The gated delta rule with the gated norm behind it: prompts, chunks of prompts, decodes and mixtures."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.gated_delta_net import reference
from pagewire_kernels.gated_delta_net.inputs import DeltaInputs

__all__ = ["DeltaInputs", "gated_delta_net"]


def gated_delta_net(inputs: DeltaInputs) -> torch.Tensor:
    """Advances each sequence's state by its new tokens and reads it after each of them.

    A head's state S [key_dim, value_dim] goes, for a token with key k and query q of length 1, value v, decay a and
    beta b, to a S + b k (v - a k S); its output q S / sqrt(key_dim) is normalised and gated. Of `state` the write slots
    of sequences with new tokens are changed and nothing else.

    Returns:
        [num_tokens, num_heads, value_dim], query's dtype, contiguous. Rows that belong to no sequence are arbitrary.

    Raises:
        ValueError: an input's shape, stride or dtype is not as DeltaInputs says.

    Source: Gated Delta Networks, arXiv:2412.06464; reference.py is the definition of correct.
    """
    inputs.check()
    return _backend(inputs.query.device.type, inputs.query.dtype)(inputs)


@cache
def _backend(device_type: str, dtype: torch.dtype) -> Callable[[DeltaInputs], torch.Tensor]:
    if device_type == "cpu" and dtype is torch.float32:
        from pagewire_kernels.gated_delta_net import cpu

        return cpu.gated_delta_net
    if device_type == "cuda":
        from pagewire_kernels.gated_delta_net.triton import gated_delta_net as triton_kernel

        return triton_kernel
    return reference.gated_delta_net
