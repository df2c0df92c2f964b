"""append_tokens on a GPU."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.append_tokens.inputs import (
    FIRST_TOKEN,
    NUM_COMPUTED,
    NUM_SAMPLED,
    NUM_TOKENS,
    STOP_REASON,
    AppendInputs,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_ROWS = 8
"""Rows of a program: with 64 stop tokens each, four for every thread of 4 warps."""
_NUM_WARPS = 4


# What comes packed from the host is aligned to its own size only.
@triton.jit(
    do_not_specialize=["num_rows"],
    do_not_specialize_on_alignment=[
        "slots_ptr",
        "query_lens_ptr",
        "sampled_ptr",
        "num_sampled_ptr",
        "sample_rows_ptr",
    ],
)
def append_tokens_kernel(
    slots_ptr,
    query_lens_ptr,
    sampled_ptr,
    num_sampled_ptr,
    sample_rows_ptr,
    ints_ptr,
    token_ids_ptr,
    stop_token_ids_ptr,
    report_ptr,
    num_rows,
    stride_ints,
    stride_tokens,
    stride_stops,
    ONE_EACH: tl.constexpr,
    ALL_SAMPLE: tl.constexpr,
    MAX_SAMPLED: tl.constexpr,
    SAMPLED_VARY: tl.constexpr,
    NUM_TOKENS: tl.constexpr,
    NUM_COMPUTED: tl.constexpr,
    STOP_REASON: tl.constexpr,
    MAX_LEN: tl.constexpr,
    TOKEN_REASON: tl.constexpr,
    LENGTH_REASON: tl.constexpr,
    ERROR_REASON: tl.constexpr,
    REPORT_COMPUTED: tl.constexpr,
    REPORT_TOKENS: tl.constexpr,
    REPORT_REASON: tl.constexpr,
    REPORT_SAMPLED: tl.constexpr,
    REPORT_FIRST: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    STOP_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid: (cdiv(num_rows, ROWS),); one program advances ROWS rows, token by token. Rows that are not live write
    nothing but their report: several may share a slot."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    is_row = row < num_rows
    slot = tl.load(slots_ptr + row, mask=is_row, other=0)
    ints = ints_ptr + slot * stride_ints
    computed = tl.load(ints + NUM_COMPUTED, mask=is_row, other=0)
    known_before = tl.load(ints + NUM_TOKENS, mask=is_row, other=0)
    reason = tl.load(ints + STOP_REASON, mask=is_row, other=1)
    max_len = tl.load(ints + MAX_LEN, mask=is_row, other=0)
    live = is_row & (reason == 0)
    if ONE_EACH:
        computed += live.to(tl.int64)
    else:
        computed += tl.load(query_lens_ptr + row, mask=live, other=0).to(tl.int64)
    goes_on = live
    sample = row
    if not ALL_SAMPLE:
        sample = tl.load(sample_rows_ptr + row, mask=live, other=-1).to(tl.int32)
        goes_on = live & (sample >= 0)
    if SAMPLED_VARY:
        num_sampled = tl.load(num_sampled_ptr + sample, mask=goes_on, other=0).to(tl.int32)
    stop = tl.arange(0, STOP_BLOCK)[None, :]
    stop_mask = goes_on[:, None] & (stop < NUM_STOPS)
    stop_tokens = tl.load(stop_token_ids_ptr + slot[:, None] * stride_stops + stop, mask=stop_mask, other=-1)
    known = known_before
    for i in tl.static_range(MAX_SAMPLED):
        if SAMPLED_VARY:
            goes_on = goes_on & (i < num_sampled)
        token = tl.load(sampled_ptr + sample.to(tl.int64) * MAX_SAMPLED + i, mask=goes_on, other=-1)  # [ROWS]
        fails = goes_on & (token < 0)
        appends = goes_on & (token >= 0)
        tl.store(token_ids_ptr + slot * stride_tokens + known, token.to(tl.int32), mask=appends)
        known += appends.to(tl.int64)
        num_hits = tl.sum((stop_mask & (stop_tokens == token[:, None])).to(tl.int32), axis=1)  # [ROWS]
        new_reason = tl.where(num_hits > 0, TOKEN_REASON, tl.where(known >= max_len, LENGTH_REASON, 0))
        reason = tl.where(appends, new_reason.to(tl.int64), tl.where(fails, ERROR_REASON, reason))
        tl.store(report_ptr + (REPORT_FIRST + i) * num_rows + row, tl.where(appends, token, -1), mask=is_row)
        goes_on = appends & (new_reason == 0)
    num_appended = known - known_before
    # Drafts that were not appended are not computed, nor is the last token that was.
    at_most = known - (num_appended > 0).to(tl.int64)
    computed = tl.where(live, tl.minimum(computed, at_most), computed)
    tl.store(ints + NUM_COMPUTED, computed, mask=live)
    tl.store(ints + NUM_TOKENS, known, mask=live)
    tl.store(ints + STOP_REASON, reason, mask=live)
    tl.store(report_ptr + REPORT_COMPUTED * num_rows + row, computed, mask=is_row)
    tl.store(report_ptr + REPORT_TOKENS * num_rows + row, known, mask=is_row)
    tl.store(report_ptr + REPORT_REASON * num_rows + row, reason, mask=is_row)
    tl.store(report_ptr + REPORT_SAMPLED * num_rows + row, num_appended, mask=is_row)


def append_tokens(inputs: AppendInputs, out: torch.Tensor | None = None) -> torch.Tensor:
    """See the package."""
    slots, query_lens, state, columns = inputs.slots, inputs.query_lens, inputs.state, inputs.state.columns
    sampled, num_sampled, sample_rows = inputs.sampled, inputs.num_sampled, inputs.sample_rows
    num_rows = slots.shape[0]
    if sample_rows is None and sampled.shape[0] != num_rows:
        raise ValueError(f"samples of {sampled.shape[0]} rows for {num_rows} rows")
    if not sampled.is_contiguous():
        raise ValueError("sampled must be contiguous")
    report = inputs.new_report() if out is None else out
    num_stops = state.stop_token_ids.shape[1]
    append_tokens_kernel[(triton.cdiv(num_rows, _ROWS),)](
        slots,
        slots if query_lens is None else query_lens.contiguous(),
        sampled,
        slots if num_sampled is None else num_sampled.contiguous(),
        slots if sample_rows is None else sample_rows.contiguous(),
        state.ints,
        state.token_ids,
        state.stop_token_ids,
        report,
        num_rows,
        state.ints.stride(0),
        state.token_ids.stride(0),
        state.stop_token_ids.stride(0),
        ONE_EACH=query_lens is None,
        ALL_SAMPLE=sample_rows is None,
        MAX_SAMPLED=inputs.max_sampled,
        SAMPLED_VARY=num_sampled is not None,
        NUM_TOKENS=columns.num_tokens,
        NUM_COMPUTED=columns.num_computed,
        STOP_REASON=columns.stop_reason,
        MAX_LEN=columns.max_len,
        TOKEN_REASON=inputs.stop_reasons.token,
        LENGTH_REASON=inputs.stop_reasons.length,
        ERROR_REASON=inputs.stop_reasons.error,
        REPORT_COMPUTED=NUM_COMPUTED,
        REPORT_TOKENS=NUM_TOKENS,
        REPORT_REASON=STOP_REASON,
        REPORT_SAMPLED=NUM_SAMPLED,
        REPORT_FIRST=FIRST_TOKEN,
        NUM_STOPS=num_stops,
        STOP_BLOCK=triton.next_power_of_2(num_stops),
        ROWS=_ROWS,
        num_warps=_NUM_WARPS,
    )
    return report
