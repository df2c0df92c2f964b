"""Log-probabilities of the rows that asked for them."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from pagewire_kernels.sample import gather_logprobs

Logprobs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""As gather_logprobs returns them."""
FEW = 256
"""Rows that ask for at most so many tokens are gathered together. Others take time and memory by themselves alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Log-probabilities of some of the rows that asked for them."""

    entries: Items[int]
    """Indices into RawLogits.rows."""
    logprobs: Logprobs
    """One row for each of them."""


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

    def gather(self, token_ids: torch.Tensor) -> list[Gathered]:
        """Gathers log-probabilities of the sampled tokens and of the most probable ones.

        Args:
            token_ids: Of the whole batch of logits, int64. -1: nothing was sampled, and what is gathered is dropped.
        """
        chosen = token_ids.index_select(0, self.index).clamp_min(0)
        if max(self.nums) <= FEW:
            return [Gathered(range(len(self.nums)), gather_logprobs(self.logits, chosen, max(self.nums)))]
        entries = [[entry for entry, num in enumerate(self.nums) if num <= FEW]]
        entries += [[entry] for entry, num in enumerate(self.nums) if num > FEW]
        return [self._gather(some, chosen) for some in entries if some]

    def _gather(self, entries: list[int], chosen: torch.Tensor) -> Gathered:
        num_top = max(self.nums[entry] for entry in entries)
        if len(entries) == 1:
            rows = slice(entries[0], entries[0] + 1)
            return Gathered(entries, gather_logprobs(self.logits[rows], chosen[rows], num_top))
        # No device knows these indices yet, and few batches have both kinds of rows: stack what has to be.
        logits, some = (torch.stack([whole[entry] for entry in entries]) for whole in (self.logits, chosen))
        return Gathered(entries, gather_logprobs(logits, some, num_top))
