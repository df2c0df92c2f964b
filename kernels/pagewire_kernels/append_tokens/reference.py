"""The definition of append_tokens."""

import torch

from pagewire_kernels.sequence_state import SequenceState


def append_tokens(
    state: SequenceState,
    slots: torch.Tensor,
    query_lens: torch.Tensor | None,
    sampled: torch.Tensor,
    sample_rows: torch.Tensor | None,
    token_reason: int,
    length_reason: int,
    error_reason: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row by row."""
    columns = state.columns
    report = slots.new_empty(4, len(slots)) if out is None else out
    report.fill_(-1)
    for row, slot in enumerate(slots.tolist()):
        ints = state.ints[slot]
        sample = row if sample_rows is None else int(sample_rows[row])
        if ints[columns.stop_reason] == 0:
            ints[columns.num_computed] += 1 if query_lens is None else query_lens[row]
            if sample >= 0 and sampled[sample] < 0:
                ints[columns.stop_reason] = error_reason
            elif sample >= 0:
                token = sampled[sample]
                state.token_ids[slot, ints[columns.num_tokens]] = token.to(torch.int32)
                ints[columns.num_tokens] += 1
                if (state.stop_token_ids[slot] == token).any():
                    ints[columns.stop_reason] = token_reason
                elif ints[columns.num_tokens] >= ints[columns.max_len]:
                    ints[columns.stop_reason] = length_reason
                report[2, row] = token
        report[0, row], report[1, row] = ints[columns.num_computed], ints[columns.num_tokens]
        report[3, row] = ints[columns.stop_reason]
    return report
