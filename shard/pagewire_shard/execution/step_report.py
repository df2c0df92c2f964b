"""What a step reports to the host, once it is there.

A report is [4, num_rows] int64. Its rows: computed tokens, known tokens, the sampled token (-1: none), the stop reason.
"""

from dataclasses import dataclass
from typing import Any

import torch
from pagewire.v1 import shard_pb2

from pagewire_shard.engine.runner import StepTokens

Logprobs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""As gather_logprobs returns them."""


@dataclass(frozen=True, slots=True, eq=False)
class PendingLogprobs:
    """Log-probabilities for the rows that asked for them."""

    rows: list[int]
    """Index into the batch."""
    nums: list[int]
    """How many of the most probable tokens each row asked for."""
    gathered: Logprobs

    def to_messages(self, sampled: list[int]) -> list[shard_pb2.SequenceLogprobs]:
        """The messages of the rows that sampled; gathered must be on the host."""
        logprob, rank, top_ids, top_logprobs = (tensor.tolist() for tensor in self.gathered)
        return [
            shard_pb2.SequenceLogprobs(
                run_index=row,
                logprob=logprob[i],
                rank=rank[i],
                top_token_ids=top_ids[i][:num],
                top_logprobs=top_logprobs[i][:num],
            )
            for i, (row, num) in enumerate(zip(self.rows, self.nums, strict=True))
            if sampled[row] >= 0
        ]


@dataclass(frozen=True, slots=True, eq=False)
class StepReport:
    """A report that has arrived."""

    lines: list[list[Any]]
    """The report's four rows: integers."""
    logprobs: PendingLogprobs | None = None
    forward_us: int = 0
    sample_us: int = 0

    def is_ready(self) -> bool:
        """Always."""
        return True

    def wait(self) -> StepTokens:
        """The step's tokens."""
        computed, known, sampled, stops = self.lines
        logprobs = self.logprobs.to_messages(sampled) if self.logprobs else []
        return StepTokens(computed, known, sampled, stops, logprobs, self.forward_us, self.sample_us)


EMPTY = StepReport([[], [], [], []])
"""Of a step without rows."""
