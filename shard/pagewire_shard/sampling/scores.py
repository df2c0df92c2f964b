"""The most probable tokens behind sequences that run in mode SCORE."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Tokens that rows may sample, best first, with log-probabilities of the model's own distribution."""

    token_ids: torch.Tensor
    """[num_rows, num_scores] int64."""
    logprobs: torch.Tensor
    """[num_rows, num_scores] float32: minus infinity behind the last token that a row may sample; NaN throughout for a
    row without a distribution."""
