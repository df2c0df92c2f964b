"""append_tokens on a CPU: the reference's loop, compiled. Made of torch's operators it would take far longer to
call than to compute."""

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from pagewire_kernels.append_tokens.inputs import (
    FIRST_TOKEN,
    NUM_COMPUTED,
    NUM_SAMPLED,
    NUM_TOKENS,
    STOP_REASON,
    AppendInputs,
)
from pagewire_kernels.cpu.compile_cache import use_compile_cache

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

use_compile_cache()


@njit(nogil=True, error_model="numpy", cache=True)
def _append_run(tokens, columns, reasons, numbers, known, stop_tokens, appended):
    """Appends a live row's tokens up to the one that stops its sequence; returns how many.

    numbers, known, stop_tokens: the rows of its slot in the state's tables. appended: takes what was appended.
    """
    num_tokens, _, stop_reason, max_len = columns
    of_token, of_length, of_error = reasons
    for i in range(tokens.size):
        token = tokens[i]
        if token < 0:
            numbers[stop_reason] = of_error
            return i
        known[numbers[num_tokens]] = token
        numbers[num_tokens] += 1
        appended[i] = token
        for stop_token in stop_tokens:
            if stop_token < 0:
                break
            if stop_token == token:
                numbers[stop_reason] = of_token
        if numbers[stop_reason] == 0 and numbers[num_tokens] >= numbers[max_len]:
            numbers[stop_reason] = of_length
        if numbers[stop_reason] != 0:
            return i + 1
    return tokens.size


@njit(nogil=True, error_model="numpy", cache=True)
def _append(state, columns, reasons, slots, query_lens, sampled, num_sampled, sample_rows, report):
    """state: (ints, token_ids, stop_token_ids); columns: the indices of StateColumns in their order; reasons: those of
    StopReasons in theirs."""
    ints, token_ids, stop_token_ids = state
    num_tokens, num_computed, stop_reason, _ = columns
    report[FIRST_TOKEN:] = -1
    for row in range(slots.size):
        slot, sample, num_appended = slots[row], sample_rows[row], 0
        numbers = ints[slot]
        if numbers[stop_reason] == 0:
            numbers[num_computed] += query_lens[row]
            if sample >= 0:
                tokens, appended = sampled[sample, : num_sampled[sample]], report[FIRST_TOKEN:, row]
                known, stop_tokens = token_ids[slot], stop_token_ids[slot]
                num_appended = _append_run(tokens, columns, reasons, numbers, known, stop_tokens, appended)
            # Drafts that were not appended are not computed, nor is the last token that was.
            most = numbers[num_tokens] - (1 if num_appended > 0 else 0)
            numbers[num_computed] = min(numbers[num_computed], most)
        report[NUM_COMPUTED, row], report[NUM_TOKENS, row] = numbers[num_computed], numbers[num_tokens]
        report[STOP_REASON, row], report[NUM_SAMPLED, row] = numbers[stop_reason], num_appended


def append_tokens(inputs: AppendInputs, out: torch.Tensor | None = None) -> torch.Tensor:
    """See the package."""
    state, columns, reasons = inputs.state, inputs.state.columns, inputs.stop_reasons
    num_rows = len(inputs.slots)
    report = inputs.new_report() if out is None else out
    _append(
        (state.ints.numpy(), state.token_ids.numpy(), state.stop_token_ids.numpy()),
        (columns.num_tokens, columns.num_computed, columns.stop_reason, columns.max_len),
        (reasons.token, reasons.length, reasons.error),
        inputs.slots.numpy(),
        np.ones(num_rows, np.int64) if inputs.query_lens is None else _integers(inputs.query_lens),
        inputs.sampled.numpy(),
        np.full(len(inputs.sampled), inputs.max_sampled)
        if inputs.num_sampled is None
        else _integers(inputs.num_sampled),
        np.arange(num_rows) if inputs.sample_rows is None else _integers(inputs.sample_rows),
        report.numpy(),
    )
    return report


def _integers(tensor: torch.Tensor) -> npt.NDArray[np.int64]:
    """One type for numba, which compiles for each."""
    return tensor.long().numpy()
