"""What append_tokens takes, and where its report has what."""

from dataclasses import dataclass

import torch

from pagewire_kernels.sequence_state import SequenceState

# Rows of the report.
NUM_COMPUTED, NUM_TOKENS, STOP_REASON, NUM_SAMPLED = range(4)
FIRST_TOKEN = 4
"""The first of max_sampled rows: the tokens appended, -1 beyond num_sampled."""


@dataclass(frozen=True, slots=True)
class StopReasons:
    """What stop_reason becomes when a sequence stops; none of them is 0."""

    token: int
    """The sequence sampled one of its stop tokens."""
    length: int
    """It has max_len tokens. A stop token in the last place counts as a stop token."""
    error: int
    """The model gave no distribution to sample from."""


@dataclass(frozen=True, slots=True)
class AppendInputs:
    """The rows of a step that has run, and what they sampled.

    A row that verifies drafts computes its draft tokens behind its known tokens, and samples the accepted ones and one
    more. A row without drafts samples one token.
    """

    state: SequenceState
    """Its ints and token_ids change. Live rows have distinct slots."""
    slots: torch.Tensor
    """[num_rows] int64."""
    query_lens: torch.Tensor | None
    """[num_rows] int64 or int32: tokens the pass computed of each row, drafts included; None: one each."""
    sampled: torch.Tensor
    """[num_samples, max_sampled] int64, contiguous: the tokens of each sampling row, in order of their positions.
    -1: the model gave no distribution to sample from."""
    sample_rows: torch.Tensor | None
    """[num_rows] int64 or int32: the row's entry in sampled; -1: it does not sample. None: row i samples entry i."""
    stop_reasons: StopReasons
    num_sampled: torch.Tensor | None = None
    """[num_samples] int64 or int32: how many of its max_sampled tokens each entry has. None: all of them."""

    @property
    def max_sampled(self) -> int:
        """The most tokens a row can have sampled: 1, and the most drafts of any row."""
        return self.sampled.shape[1]

    def new_report(self) -> torch.Tensor:
        """Uninitialized memory for the report: [FIRST_TOKEN + max_sampled, num_rows] int64."""
        shape = (FIRST_TOKEN + self.max_sampled, self.slots.shape[0])
        return torch.empty(shape, dtype=torch.int64, device=self.slots.device)
