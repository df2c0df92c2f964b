"""What prepare_inputs makes: the inputs of one forward pass."""

from dataclasses import dataclass

import torch


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
