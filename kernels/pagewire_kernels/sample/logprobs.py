"""Log-probabilities of the model's own distribution, in any number and on any device."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from pagewire_kernels.sample import reference
from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.largest import largest

Logprobs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class _Backend(NamedTuple):
    """What a device has."""

    gather: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, ...]]
    """gather_logprobs, which also returns each row's normaliser: a logit less that is a log-probability."""
    max_top: int
    """The most tokens that it reports."""
    taken: Callable[[torch.Tensor, SamplingBatch], torch.Tensor]
    """A copy of the logits, minus infinity where a row may not sample a token."""


def gather_logprobs(logits: torch.Tensor, sampled: torch.Tensor, num_top: int) -> Logprobs:
    """Reports the log-probabilities of the model's own distribution, before biases and all other stages.

    vLLM does the same by default (--logprobs-mode raw_logprobs).

    Args:
        logits: [num_rows, vocab_size], rows contiguous, as the model gave them; float32 on a CPU.
        sampled: [num_rows] int64.
        num_top: How many of the most probable tokens to report. Up to some tens one kernel finds them; for more, rows
            are sorted, in as much memory as a few of them take.

    Returns:
        The sampled tokens' log-probabilities [num_rows] float32 and ranks from 1 [num_rows] int64; the num_top most
        probable tokens, best first, of equals the lower id first [num_rows, num_top] int64, and their
        log-probabilities [num_rows, num_top] float32. A row's are the same whatever the others.
    """
    backend, num_top = _backend(logits.device.type), min(num_top, logits.shape[1])
    if backend is None:
        return reference.gather_logprobs(logits, sampled, num_top)
    if num_top <= backend.max_top:
        logprobs, ranks, top_ids, top_logprobs, _ = backend.gather(logits, sampled, num_top)
        return logprobs, ranks, top_ids, top_logprobs
    logprobs, ranks, _, _, normalisers = backend.gather(logits, sampled, 0)
    top_ids = largest(logits, num_top)
    return logprobs, ranks, top_ids, logits.gather(1, top_ids).float() - normalisers[:, None]


def most_probable(logits: torch.Tensor, batch: SamplingBatch, num_top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable of the tokens that rows may sample: what masks, allowed tokens, bad words and the stop mask
    leave. Biases and penalties have no effect.

    Args:
        logits: As gather_logprobs takes them; not changed.
        batch: The rows' slots and masks.
        num_top: At most vocab_size.

    Returns:
        The tokens, best first, of equals the lower id first [num_rows, num_top] int64, and their log-probabilities of
        the whole distribution [num_rows, num_top] float32: minus infinity behind the last token that a row may sample;
        NaN throughout for a row without a distribution.
    """
    backend = _backend(logits.device.type)
    if backend is None:
        return reference.most_probable(logits, batch, num_top)
    normalisers = backend.gather(logits, batch.slots.new_zeros(len(logits)), 0)[4]
    taken = backend.taken(logits, batch)
    if num_top <= backend.max_top:
        token_ids = backend.gather(taken, batch.slots.new_zeros(len(logits)), num_top)[2]
    else:
        token_ids = largest(taken, num_top)
    return token_ids, taken.gather(1, token_ids).float() - normalisers[:, None]


@cache
def _backend(device_type: str) -> _Backend | None:
    """The kernels of a device; None: it has none."""
    if device_type == "cuda":
        from pagewire_kernels.sample import triton_logprobs, triton_take

        return _Backend(triton_logprobs.gather_logprobs, triton_logprobs.MAX_TOP, triton_take.taken)
    if device_type == "cpu":
        from pagewire_kernels.sample import cpu_logprobs, cpu_take

        return _Backend(cpu_logprobs.gather_logprobs, cpu_logprobs.MAX_TOP, cpu_take.taken)
    return None
