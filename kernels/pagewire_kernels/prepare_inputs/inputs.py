"""What prepare_inputs takes, and what it makes: the inputs of one forward pass."""

from dataclasses import dataclass

import torch

from pagewire_kernels.sequence_state import SequenceState


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step, as the host names them."""

    state: SequenceState
    """As it is before the pass; not changed. Draft tokens stand behind a sequence's known ones. Live rows have distinct
    slots."""
    slots: torch.Tensor
    """[num_rows] int64."""
    query_lens: torch.Tensor | None
    """[num_rows] int64 or int32, on slots' device: tokens to compute of each row, drafts included; None: one each."""
    block_size: int
    """Tokens of a block."""
    num_tokens: int
    """Rows of the pass, at least the sum of query_lens; what is more is padding."""
    max_blocks: int
    """Columns of the gathered block tables, enough for the longest sequence."""


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """A packed batch of new tokens, sequence after sequence, then padding."""

    input_ids: torch.Tensor
    """[num_tokens] int64; 0 in void rows and padding."""
    positions: torch.Tensor
    """[num_tokens] int64; 0 in void rows and padding."""
    slot_mapping: torch.Tensor
    """[num_tokens] int64: block_id * block_size + offset; -1 in void rows and padding."""
    query_start_loc: torch.Tensor
    """[num_rows + 1] int32: where each row's new tokens start."""
    seq_lens: torch.Tensor
    """[num_rows] int32, new tokens included; 0: the row is void."""
    block_tables: torch.Tensor
    """[num_rows, max_blocks] int32; entries beyond a row's length are arbitrary."""
