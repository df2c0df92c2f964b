"""Causal multi-head latent attention over a paged cache of latents: prefill, chunked prefill, decode and mixtures."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.latent_attention import reference
from pagewire_kernels.latent_attention.inputs import LatentInputs

__all__ = ["LatentInputs", "latent_attention"]


def latent_attention(inputs: LatentInputs) -> torch.Tensor:
    """Attends from the new tokens of each sequence to the latents of all of its tokens so far.

    The key matrices of the heads are absorbed by the queries and the value matrices by what follows: all heads read the
    same latents, as keys and as values. A sequence's new tokens are its last ones, as in paged_attention.

    Returns:
        [num_tokens, num_heads, latent_dim], query_latent's dtype, contiguous: each head's weighted sum of latents. Rows
        that belong to no sequence are arbitrary.

    Raises:
        ValueError: an input's shape, stride or dtype is not as LatentInputs says.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1 and appendix C; reference.py is the definition of correct.
    """
    inputs.check()
    return _backend(inputs.query_latent.device.type)(inputs)


@cache
def _backend(device_type: str) -> Callable[[LatentInputs], torch.Tensor]:
    if device_type == "cpu":
        from pagewire_kernels.latent_attention import cpu

        return cpu.latent_attention
    if device_type == "cuda":
        from pagewire_kernels.latent_attention.triton import latent_attention as triton_kernel

        return triton_kernel
    return reference.latent_attention
