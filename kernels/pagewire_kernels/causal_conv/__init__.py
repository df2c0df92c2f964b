"""Causal convolution of each channel by itself, over the tokens of each sequence and the last ones before them."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.causal_conv import reference
from pagewire_kernels.causal_conv.inputs import ConvInputs

__all__ = ["ConvInputs", "causal_conv"]


def causal_conv(inputs: ConvInputs) -> torch.Tensor:
    """The sum of each token's last `width` inputs, weighted by channel, with a bias and an activation if there are any.

    Writes the last width - 1 inputs of each sequence to its write slot.

    Returns:
        [num_tokens, channels], x's dtype, contiguous; 0 where a token belongs to no sequence.

    reference.py is the definition of correct.
    """
    return _backend(inputs.x.device.type)(inputs)


@cache
def _backend(device_type: str) -> Callable[[ConvInputs], torch.Tensor]:
    if device_type == "cuda":
        from pagewire_kernels.causal_conv.triton import causal_conv as triton_kernel

        return triton_kernel
    if device_type == "cpu":
        from pagewire_kernels.causal_conv.cpu import causal_conv as cpu

        return cpu
    return reference.causal_conv
