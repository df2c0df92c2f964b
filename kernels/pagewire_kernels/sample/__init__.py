"""Sampling: deterministic for each row by itself, whatever else is in the batch."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.sample import reference
from pagewire_kernels.sample.batch import SamplingBatch, TokenMasks
from pagewire_kernels.sample.columns import GREEDY_BELOW, SamplingColumns, Stage
from pagewire_kernels.sample.logprobs import gather_logprobs, most_probable

__all__ = [
    "GREEDY_BELOW",
    "SamplingBatch",
    "SamplingColumns",
    "Stage",
    "TokenMasks",
    "gather_logprobs",
    "most_probable",
    "sample",
]


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Samples one token for each row.

    In vLLM's order: masks, allowed tokens, bad words, biases, stop mask, penalties, then the most probable token
    (greedy rows) or temperature, min_p, top_k, top_p and a draw. reference.py states what each does and where the noise
    comes from.

    Args:
        logits: [num_rows, vocab_size], rows contiguous. On a CPU float32 and used as scratch space: undefined
            afterwards. On a GPU float32, bfloat16 or float16, and not changed.
        batch: On a GPU only the RARE_STAGES among its stages are looked at: a captured graph serves all other rows.

    Returns:
        [num_rows] int64; -1 of rows without a distribution: NaN, infinity or nothing but minus infinity, once the
        tokens that may not be sampled have been taken.
    """
    if logits.is_cuda:
        return _cuda_sample()(logits, batch)
    if logits.is_cpu:
        return _cpu_sample()(logits, batch)
    return reference.sample(logits, batch)


@cache
def _cpu_sample() -> Callable[[torch.Tensor, SamplingBatch], torch.Tensor]:
    from pagewire_kernels.sample import cpu

    return cpu.sample


@cache
def _cuda_sample() -> Callable[[torch.Tensor, SamplingBatch], torch.Tensor]:
    from pagewire_kernels.sample.triton import sample as triton_kernels

    return triton_kernels
