"""The most probable tokens behind sequences that run in mode SCORE."""

from dataclasses import dataclass

import torch
from pagewire_kernels.sample import SamplingBatch, Stage
from pagewire_kernels.sample.reference import mask_stop_tokens, take_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Tokens that rows may sample, best first, with log-probabilities of the model's own distribution."""

    token_ids: torch.Tensor
    """[num_rows, num_scores] int64."""
    logprobs: torch.Tensor
    """[num_rows, num_scores] float32: minus infinity behind the last token that a row may sample; NaN throughout for a
    row without a distribution."""


def most_probable(logits: torch.Tensor, batch: SamplingBatch, num_scores: int) -> Scores:
    """Scores rows of logits.

    Args:
        logits: [num_rows, vocab_size], as the model gave them; not changed.
        batch: The rows' slots; of the stages only those matter that take tokens away.
        num_scores: At most vocab_size.
    """
    logits = logits.float()
    logprobs = logits.log_softmax(dim=-1)
    allowed = take_tokens(logprobs, batch)
    if Stage.STOP_MASK in batch.stages:
        allowed = mask_stop_tokens(allowed, batch)
    top_logprobs, token_ids = allowed.topk(num_scores, dim=-1)
    is_sound = ~logprobs.amax(dim=-1, keepdim=True).isnan()
    return Scores(token_ids, torch.where(is_sound, top_logprobs, float("nan")))
