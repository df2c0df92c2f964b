"""The definition of append_tokens."""

import torch

from pagewire_kernels.append_tokens.inputs import (
    FIRST_TOKEN,
    NUM_COMPUTED,
    NUM_SAMPLED,
    NUM_TOKENS,
    STOP_REASON,
    AppendInputs,
)


def append_tokens(inputs: AppendInputs, out: torch.Tensor | None = None) -> torch.Tensor:
    """Row by row, token by token."""
    columns = inputs.state.columns
    report = inputs.new_report() if out is None else out
    report.fill_(-1)
    for row, slot in enumerate(inputs.slots.tolist()):
        ints = inputs.state.ints[slot]
        appended: list[int] = []
        if ints[columns.stop_reason] == 0:
            ints[columns.num_computed] += 1 if inputs.query_lens is None else int(inputs.query_lens[row])
            appended = _append(inputs, row, slot)
            # Drafts that were not appended are not computed, nor is the last token that was.
            ints[columns.num_computed].clamp_(max=int(ints[columns.num_tokens]) - bool(appended))
        report[NUM_COMPUTED, row], report[NUM_TOKENS, row] = ints[columns.num_computed], ints[columns.num_tokens]
        report[STOP_REASON, row], report[NUM_SAMPLED, row] = ints[columns.stop_reason], len(appended)
        report[FIRST_TOKEN : FIRST_TOKEN + len(appended), row] = torch.tensor(appended)
    return report


def _append(inputs: AppendInputs, row: int, slot: int) -> list[int]:
    """Appends a live row's tokens up to the one that stops its sequence. Returns what was appended."""
    state, columns, reasons = inputs.state, inputs.state.columns, inputs.stop_reasons
    sample = row if inputs.sample_rows is None else int(inputs.sample_rows[row])
    if sample < 0:
        return []
    ints = state.ints[slot]
    appended: list[int] = []
    num_sampled = inputs.max_sampled if inputs.num_sampled is None else int(inputs.num_sampled[sample])
    for token in inputs.sampled[sample, :num_sampled].tolist():
        if token < 0:
            ints[columns.stop_reason] = reasons.error
            break
        state.token_ids[slot, ints[columns.num_tokens]] = token
        ints[columns.num_tokens] += 1
        appended.append(token)
        if (state.stop_token_ids[slot] == token).any():
            ints[columns.stop_reason] = reasons.token
            break
        if ints[columns.num_tokens] >= ints[columns.max_len]:
            ints[columns.stop_reason] = reasons.length
            break
    return appended
