"""Sampling: deterministic for each row by itself, whatever else is in the batch."""

from collections.abc import Callable
from functools import cache

import torch

from pagewire_kernels.sample import reference
from pagewire_kernels.sample.batch import SamplingBatch, TokenMasks
from pagewire_kernels.sample.columns import GREEDY_BELOW, SamplingColumns, Stage

__all__ = ["GREEDY_BELOW", "SamplingBatch", "SamplingColumns", "Stage", "TokenMasks", "gather_logprobs", "sample"]

Logprobs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


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


def gather_logprobs(logits: torch.Tensor, sampled: torch.Tensor, num_top: int) -> Logprobs:
    """Reports the log-probabilities of the model's own distribution, before biases and all other stages.

    vLLM does the same by default (--logprobs-mode raw_logprobs).

    Args:
        logits: [num_rows, vocab_size], rows contiguous, as the model gave them; float32 on a CPU.
        sampled: [num_rows] int64.
        num_top: How many of the most probable tokens to report.

    Returns:
        The sampled tokens' log-probabilities [num_rows] float32 and ranks from 1 [num_rows] int64; the num_top most
        probable tokens, best first, of equals the lower id first [num_rows, num_top] int64, and their
        log-probabilities [num_rows, num_top] float32.
    """
    if logits.is_cuda:
        return _cuda_gather_logprobs()(logits, sampled, num_top)
    if logits.is_cpu:
        return _cpu_gather_logprobs()(logits, sampled, num_top)
    return reference.gather_logprobs(logits, sampled, num_top)


@cache
def _cpu_sample() -> Callable[[torch.Tensor, SamplingBatch], torch.Tensor]:
    from pagewire_kernels.sample import cpu

    return cpu.sample


@cache
def _cpu_gather_logprobs() -> Callable[[torch.Tensor, torch.Tensor, int], Logprobs]:
    from pagewire_kernels.sample import cpu_logprobs

    return cpu_logprobs.gather_logprobs


@cache
def _cuda_sample() -> Callable[[torch.Tensor, SamplingBatch], torch.Tensor]:
    from pagewire_kernels.sample.triton import sample as triton_kernels

    return triton_kernels


@cache
def _cuda_gather_logprobs() -> Callable[[torch.Tensor, torch.Tensor, int], Logprobs]:
    from pagewire_kernels.sample.triton_logprobs import gather_logprobs as triton_kernels

    return triton_kernels
