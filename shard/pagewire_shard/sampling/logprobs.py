"""Log-probabilities of the rows that asked for them."""

from dataclasses import dataclass

import torch
from pagewire_kernels.sample import gather_logprobs

Logprobs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""As gather_logprobs returns them."""


@dataclass(frozen=True, slots=True, eq=False)
class RawLogits:
    """Logits as the model gave them, before biases and all other stages: what log-probabilities are reported of."""

    rows: list[int]
    """The rows that asked for log-probabilities, as indices into the batch of logits."""
    nums: list[int]
    """How many of the most probable tokens each of them asked for."""
    index: torch.Tensor
    """[num_rows] int64: rows, on the device."""
    logits: torch.Tensor
    """[num_rows, vocab_size]: a copy, for sampling may change the logits in place."""

    def gather(self, token_ids: torch.Tensor) -> Logprobs:
        """Gathers log-probabilities of the sampled tokens and of the most probable ones.

        Args:
            token_ids: Of the whole batch of logits, int64. -1: nothing was sampled, and what is gathered is dropped.
        """
        chosen = token_ids.index_select(0, self.index).clamp_min(0)
        return gather_logprobs(self.logits, chosen, max(self.nums))
