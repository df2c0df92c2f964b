"""prepare_inputs and append_tokens as served, beside their definitions: what they yield and change is exact."""

from dataclasses import fields, replace

import pytest
import torch
from kernel_site import Site
from pagewire_kernels.append_tokens import AppendInputs, StopReasons, append_tokens
from pagewire_kernels.append_tokens import reference as append_reference
from pagewire_kernels.prepare_inputs import StepRows, prepare_inputs
from pagewire_kernels.prepare_inputs import reference as prepare_reference
from pagewire_kernels.sequence_state import SequenceState, StateColumns

COLUMNS = StateColumns(num_tokens=0, num_computed=1, stop_reason=2, max_len=4)
NUM_SLOTS, MAX_LEN, BLOCK_SIZE, VOCAB_SIZE = 70, 300, 16, 50
MAX_BLOCKS = -(-MAX_LEN // BLOCK_SIZE)
REASONS = StopReasons(token=1, length=2, error=3)
BATCHES = pytest.mark.parametrize(
    ("num_rows", "longest"), [(64, 1), (1, 1), (33, 40)], ids=["decodes", "one row", "mixture"]
)


def random_state(device: torch.device) -> SequenceState:
    """Sequences of random lengths; every seventh has stopped, some are one token short of their limit."""
    ints = torch.zeros(NUM_SLOTS, 8, dtype=torch.int64, device=device)
    ints[:, COLUMNS.num_computed] = torch.randint(0, MAX_LEN - 60, (NUM_SLOTS,), device=device)
    ints[:, COLUMNS.num_tokens] = ints[:, COLUMNS.num_computed] + 1
    ints[::7, COLUMNS.stop_reason] = 1
    ints[:, COLUMNS.max_len] = MAX_LEN - 10
    ints[::5, COLUMNS.max_len] = ints[::5, COLUMNS.num_tokens] + 1
    stop_token_ids = torch.full((NUM_SLOTS, 64), -1, dtype=torch.int32, device=device)
    stop_token_ids[:, :10] = torch.randint(0, VOCAB_SIZE, (NUM_SLOTS, 10), dtype=torch.int32, device=device)
    return SequenceState(
        ints=ints,
        token_ids=torch.randint(0, VOCAB_SIZE, (NUM_SLOTS, MAX_LEN), dtype=torch.int32, device=device),
        block_tables=torch.randint(0, 999, (NUM_SLOTS, MAX_BLOCKS), dtype=torch.int32, device=device),
        stop_token_ids=stop_token_ids,
        columns=COLUMNS,
    )


def random_rows(device: torch.device, num_rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Slots, and query lengths unless all are 1."""
    slots = torch.randperm(NUM_SLOTS, device=device)[:num_rows]
    lens = torch.randint(1, longest + 1, (num_rows,), device=device)
    return slots, None if longest == 1 else lens


def assert_equal(left: object, right: object) -> None:
    """Of two dataclasses every tensor; entries of block tables beyond a sequence's length may differ."""
    for field in fields(left):
        if field.name not in ("block_tables", "columns"):
            assert torch.equal(getattr(left, field.name), getattr(right, field.name)), field.name


@BATCHES
def test_prepare_inputs(float32_site: Site, num_rows: int, longest: int) -> None:
    state = random_state(float32_site.device)
    slots, lens = random_rows(float32_site.device, num_rows, longest)
    # Rows of one token each are never padded by tokens: a graph pads them by rows.
    num_tokens = num_rows if lens is None else int(lens.sum()) + 5
    rows = StepRows(state, slots, lens, BLOCK_SIZE, num_tokens, MAX_BLOCKS)
    assert_equal(prepare_inputs(rows), prepare_reference.prepare_inputs(rows))


@BATCHES
@pytest.mark.parametrize("max_sampled", [1, 5])
@pytest.mark.parametrize("all_sample", [True, False], ids=["all sample", "some sample"])
def test_append_tokens(float32_site: Site, num_rows: int, longest: int, all_sample: bool, max_sampled: int) -> None:
    device = float32_site.device
    state = random_state(device)
    slots, lens = random_rows(device, num_rows, longest)
    if lens is not None:
        state.ints[slots, COLUMNS.num_tokens] = state.ints[slots, COLUMNS.num_computed] + lens
    num_sampled = None
    if max_sampled > 1:
        # What a row computes beyond its known tokens are its drafts.
        lens = state.ints[slots, COLUMNS.num_tokens] - state.ints[slots, COLUMNS.num_computed] + max_sampled - 1
        num_sampled = torch.randint(1, max_sampled + 1, (num_rows,), device=device)
    sampled = torch.randint(-1, VOCAB_SIZE, (num_rows, max_sampled), device=device)
    rows = None if all_sample else torch.randperm(num_rows, device=device).to(torch.int32)
    if rows is not None:
        rows[::3] = -1
    ours, theirs = (replace(state, ints=state.ints.clone(), token_ids=state.token_ids.clone()) for _ in range(2))
    inputs = AppendInputs(ours, slots, lens, sampled, rows, REASONS, num_sampled)
    report = append_tokens(inputs)
    assert torch.equal(report, append_reference.append_tokens(replace(inputs, state=theirs)))
    assert_equal(ours, theirs)
