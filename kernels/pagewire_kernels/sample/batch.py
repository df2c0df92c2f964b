"""What the rows of a batch of logits are to be sampled by."""

from dataclasses import dataclass

import torch

from pagewire_kernels.sample.columns import ALL_STAGES, SamplingColumns, Stage
from pagewire_kernels.sequence_state import SequenceState


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens rows of a batch may sample, such as those that a grammar allows next."""

    bits: torch.Tensor
    """[num_masks, mask_words(vocab_size)] int32, rows contiguous: bit i of word w is 1 if token 32 * w + i is allowed.
    Bits beyond the vocabulary mean nothing."""
    rows: torch.Tensor
    """[num_rows] int64, contiguous: each row's mask; -1: all tokens are allowed."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """num_rows rows of logits: each is one slot's, whose row of every table says how it is sampled."""

    slots: torch.Tensor
    """[num_rows] int64, contiguous."""
    sequences: SequenceState
    """The tokens and stop tokens of all slots. A token is sampled for the place num_tokens of its sequence."""
    columns: SamplingColumns
    stages: Stage = ALL_STAGES
    """At least the stages that some row needs; more of them cost time alone."""
    masks: TokenMasks | None = None
    """Looked at if Stage.MASK is among the stages. None: no row has one."""

    def parameter(self, name: str) -> torch.Tensor:
        """A column of each row: [num_rows]."""
        return self.columns.column(name)[self.slots]

    def num_tokens(self) -> torch.Tensor:
        """[num_rows] int64: prompt and output so far."""
        return self.sequences.ints[self.slots, self.sequences.columns.num_tokens]
