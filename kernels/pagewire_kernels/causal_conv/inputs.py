"""The arguments of one call of causal_conv."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class ConvInputs:
    """A packed batch of tokens, sequence after sequence, then padding, and the inputs before them by state slot.

    No sequence writes to a slot that another one of the batch reads or writes, but for a scrap slot that all padding
    writes to and nobody reads.
    """

    x: torch.Tensor
    """[num_tokens, channels], rows contiguous."""
    weight: torch.Tensor
    """[channels, width], contiguous, any float type; the last column multiplies the token itself."""
    bias: torch.Tensor | None
    """[channels], weight's dtype."""
    state: torch.Tensor
    """[num_slots, width - 1, channels], contiguous, of x's dtype or a wider one: the inputs before a sequence's tokens,
    the oldest first."""
    read_slots: torch.Tensor
    """[num_seqs] int32; -1: the sequence begins, zeros are before its tokens."""
    write_slots: torch.Tensor
    """[num_seqs] int32: where the state behind its tokens goes; may be the slot that it reads."""
    query_start_loc: torch.Tensor
    """[num_seqs + 1] int32: where each sequence's tokens start; one without tokens is padding and writes nothing."""
    max_query_len: int
    """Most tokens of any sequence. 1: sequence i has token i alone, and what is behind them is padding."""
    activation: Literal["silu"] | None = None
    """Of the result."""
