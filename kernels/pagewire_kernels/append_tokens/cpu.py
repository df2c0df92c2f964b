"""append_tokens on a CPU: all rows at once."""

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
    """See the package."""
    columns = state.columns
    ints = state.ints.index_select(0, slots)  # [num_rows, num_ints]
    live = ints[:, columns.stop_reason] == 0
    tokens = sampled
    if sample_rows is not None:
        samples = sample_rows >= 0
        tokens = torch.full_like(slots, -1)
        tokens[samples] = sampled[sample_rows[samples]]
    appends = live & (tokens >= 0)
    fails = live & (tokens < 0) if sample_rows is None else live & (tokens < 0) & samples
    lengths = ints[:, columns.num_tokens].clone()
    ints[:, columns.num_computed] += live * (1 if query_lens is None else query_lens)
    ints[:, columns.num_tokens] += appends
    reasons = (ints[:, columns.num_tokens] >= ints[:, columns.max_len]) * length_reason
    is_stop_token = (state.stop_token_ids.index_select(0, slots) == tokens[:, None]).any(1)
    reasons.masked_fill_(is_stop_token, token_reason)
    stops = torch.where(appends, reasons, ints[:, columns.stop_reason])
    ints[:, columns.stop_reason] = stops.masked_fill_(fails, error_reason)
    state.ints.index_copy_(0, slots, ints)
    state.token_ids[slots[appends], lengths[appends]] = tokens[appends].to(torch.int32)
    report = (ints[:, columns.num_computed], ints[:, columns.num_tokens], tokens.masked_fill(~appends, -1))
    return torch.stack((*report, ints[:, columns.stop_reason]), out=out)
