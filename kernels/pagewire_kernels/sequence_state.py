"""The state of all sequences on the device, for the ops that read and advance it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StateColumns:
    """Indices of the columns of `ints`."""

    num_tokens: int
    """Column of the number of known tokens."""
    num_computed: int
    """Column of the number of tokens whose keys and values are in the cache."""
    stop_reason: int
    """Column of the stop reason. 0: the sequence goes on; else it has stopped, and its row in any batch is void."""
    max_len: int
    """Column of the number of known tokens at which the sequence stops."""


@dataclass(frozen=True, slots=True)
class SequenceState:
    """One row, or slot, for each sequence; rows contiguous. A batch names its sequences by slot."""

    ints: torch.Tensor
    """[num_slots, num_ints] int64; `columns` names those that are used here."""
    token_ids: torch.Tensor
    """[num_slots, max_len] int32: known tokens; beyond num_tokens drafts to verify, or anything."""
    block_tables: torch.Tensor
    """[num_slots, max_blocks] int32: block ids in order; beyond the sequence's blocks arbitrary."""
    stop_token_ids: torch.Tensor
    """[num_slots, max_stop_tokens] int32: tokens that end the sequence, padded with -1."""
    columns: StateColumns
