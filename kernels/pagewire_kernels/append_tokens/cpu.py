"""append_tokens on a CPU: all rows at once, one token after the other."""

import torch

from pagewire_kernels.append_tokens.inputs import AppendInputs


def append_tokens(inputs: AppendInputs, out: torch.Tensor | None = None) -> torch.Tensor:
    """See the package."""
    state, columns, slots = inputs.state, inputs.state.columns, inputs.slots
    ints = state.ints.index_select(0, slots)  # [num_rows, num_ints]
    live = ints[:, columns.stop_reason] == 0
    ints[:, columns.num_computed] += live * (1 if inputs.query_lens is None else inputs.query_lens)
    sampled, num_sampled, samples = _by_row(inputs, live)
    tokens: list[torch.Tensor] = []
    num_appended = torch.zeros_like(slots)
    for i in range(inputs.max_sampled):
        has_token = samples if num_sampled is None else samples & (num_sampled > i)
        if i:
            has_token = has_token & (ints[:, columns.stop_reason] == 0)
        appends = _append(inputs, ints, sampled[:, i], has_token)
        num_appended += appends
        tokens.append(sampled[:, i].masked_fill(~appends, -1))
    computed, lengths = ints[:, columns.num_computed], ints[:, columns.num_tokens]
    if inputs.max_sampled > 1:
        # Drafts that were not appended are not computed, nor is the last token that was.
        torch.minimum(computed, lengths - (num_appended > 0).long(), out=computed)
    state.ints.index_copy_(0, slots, ints)
    return torch.stack((computed, lengths, ints[:, columns.stop_reason], num_appended, *tokens), out=out)


def _append(inputs: AppendInputs, ints: torch.Tensor, tokens: torch.Tensor, has_token: torch.Tensor) -> torch.Tensor:
    """Appends a token to each of the rows that have one, and moves `ints` on. Returns which rows took theirs."""
    state, columns, slots, reasons = inputs.state, inputs.state.columns, inputs.slots, inputs.stop_reasons
    appends = has_token & (tokens >= 0)
    places = ints[:, columns.num_tokens][appends]
    ints[:, columns.num_tokens] += appends
    stops = (ints[:, columns.num_tokens] >= ints[:, columns.max_len]) * reasons.length
    is_stop_token = (state.stop_token_ids.index_select(0, slots) == tokens[:, None]).any(1)
    stops = torch.where(appends, stops.masked_fill_(is_stop_token, reasons.token), ints[:, columns.stop_reason])
    ints[:, columns.stop_reason] = stops.masked_fill_(has_token & (tokens < 0), reasons.error)
    state.token_ids[slots[appends], places] = tokens[appends].to(torch.int32)
    return appends


def _by_row(inputs: AppendInputs, live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Each row's tokens [num_rows, max_sampled] and their number [num_rows], and which rows are live and sample."""
    rows = inputs.sample_rows
    if rows is None:
        return inputs.sampled, inputs.num_sampled, live
    samples = live & (rows >= 0)
    entries = rows[samples]
    tokens = inputs.sampled.new_full((len(rows), inputs.max_sampled), -1)
    tokens[samples] = inputs.sampled[entries]
    if inputs.num_sampled is None:
        return tokens, None, samples
    num_sampled = torch.zeros_like(inputs.slots)
    num_sampled[samples] = inputs.num_sampled[entries].to(torch.int64)
    return tokens, num_sampled, samples
