"""prepare_inputs and append_tokens on a CPU, all rows at once, against their row-by-row references."""

from dataclasses import fields

import pytest
import torch
from pagewire_kernels.append_tokens import append_tokens
from pagewire_kernels.append_tokens import reference as append_reference
from pagewire_kernels.prepare_inputs import PreparedInputs, prepare_inputs
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
    found = prepare_inputs(
        state, torch.tensor(slots), lens, block_size=BLOCK_SIZE, num_tokens=num_tokens, max_blocks=MAX_LEN // BLOCK_SIZE
    )
    expected = prepare_reference.prepare_inputs(
        state, torch.tensor(slots), lens, BLOCK_SIZE, num_tokens, MAX_LEN // BLOCK_SIZE
    )
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
    found, expected = sequence_state(), sequence_state()
    lens = None if query_lens is None else torch.tensor(query_lens)
    rows = None if sample_rows is None else torch.tensor(sample_rows)
    tokens = torch.tensor(sampled, dtype=torch.int64)
    report = append_tokens(
        found, torch.tensor(slots), lens, tokens, rows, token_reason=1, length_reason=2, error_reason=3
    )
    wanted = append_reference.append_tokens(expected, torch.tensor(slots), lens, tokens, rows, 1, 2, 3)
    assert report.tolist() == wanted.tolist()
    assert torch.equal(found.ints, expected.ints)
    assert torch.equal(found.token_ids, expected.token_ids)
