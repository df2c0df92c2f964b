"""append_tokens on a CPU: all rows at once, one token after the other."""

import torch

from pagewire_kernels.append_tokens.inputs import AppendInputs


def append_tokens(inputs: AppendInputs, out: torch.Tensor | None = None) -> torch.Tensor:
    """See the package."""
    state, columns, slots = inputs.state, inputs.state.columns, inputs.slots
    ints = state.ints.index_select(0, slots)  # [num_rows, num_ints]
    views = ints.unbind(1)
    computed, lengths, reasons = views[columns.num_computed], views[columns.num_tokens], views[columns.stop_reason]
    live = reasons == 0
    computed += live if inputs.query_lens is None else live * inputs.query_lens
    sampled, num_sampled, samples = _by_row(inputs, live)
    tokens: list[torch.Tensor] = []
    num_appended = torch.zeros((), dtype=torch.int64)
    for i, token in enumerate(sampled.unbind(1)):
        has_token = samples if num_sampled is None else samples & (num_sampled > i)
        if i:
            has_token = has_token & (reasons == 0)
        appends = _append(inputs, lengths, reasons, views[columns.max_len], token, has_token)
        num_appended = num_appended + appends
        tokens.append(token.masked_fill(~appends, -1))
    if inputs.max_sampled > 1:
        # Drafts that were not appended are not computed, nor is the last token that was.
        torch.minimum(computed, lengths - (num_appended > 0).long(), out=computed)
    state.ints.index_copy_(0, slots, ints)
    return torch.stack((computed, lengths, reasons, num_appended, *tokens), out=out)


def _append(
    inputs: AppendInputs,
    lengths: torch.Tensor,
    reasons: torch.Tensor,
    max_lens: torch.Tensor,
    token: torch.Tensor,
    has_token: torch.Tensor,
) -> torch.Tensor:
    """Appends a token to each row that has one, and moves lengths and stop reasons on, in place.

    Args:
        lengths, reasons, max_lens, token: [num_rows] int64.
        has_token: [num_rows] bool.

    Returns:
        [num_rows] bool: the rows that took theirs.
    """
    state, slots = inputs.state, inputs.slots
    appends = has_token & (token >= 0)
    (rows,) = appends.nonzero(as_tuple=True)
    state.token_ids[slots[rows], lengths[rows]] = token[rows].to(torch.int32)
    lengths += appends
    stops = (lengths >= max_lens) * inputs.stop_reasons.length
    is_stop_token = (state.stop_token_ids.index_select(0, slots) == token[:, None]).any(1)
    stops.masked_fill_(is_stop_token, inputs.stop_reasons.token)
    reasons.copy_(torch.where(appends, stops, reasons))
    reasons.masked_fill_(has_token ^ appends, inputs.stop_reasons.error)
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
