"""prepare_inputs and append_tokens on a CPU, all rows at once, against their row-by-row references."""

from dataclasses import fields

import pytest
import torch
from pagewire_kernels.append_tokens import AppendInputs, StopReasons, append_tokens
from pagewire_kernels.append_tokens import reference as append_reference
from pagewire_kernels.prepare_inputs import PreparedInputs, StepRows, prepare_inputs
from pagewire_kernels.prepare_inputs import reference as prepare_reference
from pagewire_kernels.sequence_state import SequenceState, StateColumns

COLUMNS = StateColumns(num_tokens=0, num_computed=1, stop_reason=2, max_len=3)
BLOCK_SIZE = 8
MAX_LEN = 64
VOID = 5


def sequence_state() -> SequenceState:
    """Six sequences; the third has stopped, the last row is the void slot."""
    torch.manual_seed(0)
    return SequenceState(
        ints=torch.tensor(
            [[20, 12, 0, 64], [9, 8, 0, 10], [30, 29, 1, 40], [64, 63, 2, 64], [7, 0, 0, 64], [0, 0, -1, 0]]
        ),
        token_ids=torch.randint(100, (6, MAX_LEN + 1), dtype=torch.int32),
        block_tables=torch.randint(50, (6, MAX_LEN // BLOCK_SIZE), dtype=torch.int32),
        stop_token_ids=torch.tensor([[3, -1]] * 6, dtype=torch.int32),
        columns=COLUMNS,
    )


@pytest.mark.parametrize(
    ("slots", "query_lens", "num_tokens"),
    [
        ([4], [1], 1),
        ([4], [7], 7),
        ([1, 2, 0, VOID, VOID], None, 5),
        ([1, 3, 0], None, 8),
        ([1, 2, 4, 0], [1, 1, 5, 8], 15),
        ([0, VOID, 3, 4], [3, 1, 1, 7], 16),
    ],
)
def test_inputs_are_those_of_the_reference(slots: list[int], query_lens: list[int] | None, num_tokens: int) -> None:
    state = sequence_state()
    lens = None if query_lens is None else torch.tensor(query_lens)
    rows = StepRows(state, torch.tensor(slots), lens, BLOCK_SIZE, num_tokens, MAX_LEN // BLOCK_SIZE)
    found, expected = prepare_inputs(rows), prepare_reference.prepare_inputs(rows)
    for field in fields(PreparedInputs):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert one.dtype is other.dtype, field.name
        assert torch.equal(one, other), field.name


@pytest.mark.parametrize(
    ("slots", "query_lens", "sampled", "sample_rows"),
    [
        ([4], [7], [11], None),
        ([1, 2, 0, VOID, VOID], None, [3, 4, 5, 6, 7], None),
        ([0, 1], None, [3, 9], None),
        ([0, 4], [8, 3], [9], [0, -1]),
        ([4, 2, 1, 3], [7, 1, 1, 1], [3, 8, 9], [-1, 0, 1, 2]),
        ([4], [2], [], [-1]),
        ([1, 0, VOID], None, [-1, 3, -1], None),
        ([4, 2, 1], [7, 1, 1], [-1, 9], [0, -1, 1]),
    ],
)
def test_appending_is_the_references(
    slots: list[int], query_lens: list[int] | None, sampled: list[int], sample_rows: list[int] | None
) -> None:
    tokens = torch.tensor(sampled, dtype=torch.int64)[:, None]
    check_append(slots, query_lens, tokens, None, sample_rows)


@pytest.mark.parametrize(
    ("slots", "query_lens", "sampled", "num_sampled", "sample_rows"),
    [
        # All accepted; the third token stops the sequence; the first one does, before max_len is reached.
        ([4, 0, 1], [10, 11, 4], [[11, 12, 13, 14], [5, 6, 3, 7], [3, 9, 9, 9]], [4, 4, 4], None),
        # Some rejected, max_len within the run, a void row, a row that does not catch up.
        ([1, 0, 2, 4], [2, 9, 2, 3], [[7, 8], [9, 77], [5, 6]], [2, 1, 2], [0, 1, 2, -1]),
        # The model breaks behind an accepted draft, and at once.
        ([0, 4], [10, 9], [[8, -1, 9], [-1, 5, 6]], [3, 3], None),
        # A stop token behind what was accepted is nobody's.
        ([0, VOID], [10, 1], [[8, 3, 3], [1, 1, 1]], [1, 1], None),
        ([0, 4], [9, 2], [[8, 9]], None, [0, -1]),
        ([4], [2], [], [], [-1]),
    ],
)
def test_appending_runs_of_tokens_is_the_references(
    slots: list[int],
    query_lens: list[int],
    sampled: list[list[int]],
    num_sampled: list[int] | None,
    sample_rows: list[int] | None,
) -> None:
    tokens = torch.tensor(sampled, dtype=torch.int64).reshape(len(sampled), -1 if sampled else 3)
    check_append(slots, query_lens, tokens, num_sampled, sample_rows)


@pytest.mark.parametrize("seed", range(20))
def test_appending_random_runs_is_the_references(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    slots = [*torch.randperm(5, generator=generator).tolist(), VOID]
    width = int(torch.randint(1, 6, (1,), generator=generator))
    tokens = torch.randint(-1, 9, (6, width), generator=generator)
    num_sampled = torch.randint(1, width + 1, (6,), generator=generator).tolist()
    uncomputed = (sequence_state().ints[:, 0] - sequence_state().ints[:, 1])[slots]
    check_append(slots, (uncomputed + width - 1).clamp(min=1).tolist(), tokens, num_sampled, None)


def test_a_run_of_tokens_ends_with_the_first_that_stops() -> None:
    state = sequence_state()
    report = append_tokens(
        append_inputs(
            state, [0, 4, 1], [11, 10, 5], torch.tensor([[5, 3, 6, 7], [8, 9, 1, 1], [4, 4, 4, 4]]), [4, 2, 4]
        )
    )
    assert report.T.tolist() == [
        # num_computed, num_tokens, stop_reason, num_sampled, tokens
        [21, 22, 1, 2, 5, 3, -1, -1],
        [8, 9, 0, 2, 8, 9, -1, -1],
        [9, 10, 2, 1, 4, -1, -1, -1],
    ]
    assert state.token_ids[0, 20:22].tolist() == [5, 3]
    assert state.token_ids[0, 22] == sequence_state().token_ids[0, 22]


def append_inputs(
    state: SequenceState,
    slots: list[int],
    query_lens: list[int] | None,
    sampled: torch.Tensor,
    num_sampled: list[int] | None,
    sample_rows: list[int] | None = None,
) -> AppendInputs:
    lens, counts, rows = (None if x is None else torch.tensor(x) for x in (query_lens, num_sampled, sample_rows))
    return AppendInputs(state, torch.tensor(slots), lens, sampled, rows, StopReasons(1, 2, 3), counts)


def check_append(
    slots: list[int],
    query_lens: list[int] | None,
    sampled: torch.Tensor,
    num_sampled: list[int] | None,
    sample_rows: list[int] | None,
) -> None:
    found, expected = sequence_state(), sequence_state()
    rest = (query_lens, sampled, num_sampled, sample_rows)
    report = append_tokens(append_inputs(found, slots, *rest))
    wanted = append_reference.append_tokens(append_inputs(expected, slots, *rest))
    assert report.tolist() == wanted.tolist()
    assert torch.equal(found.ints, expected.ints)
    assert torch.equal(found.token_ids, expected.token_ids)
