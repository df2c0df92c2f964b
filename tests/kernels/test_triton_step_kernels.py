"""The Triton kernels around a forward pass, prepare_inputs, append_tokens and write_runs, against their references: on
the GPU if there is one, else in Triton's interpreter, in a process of its own.

Memory that torch.empty gives holds a number that would be noticed.
"""

from dataclasses import fields, replace

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.append_tokens import FIRST_TOKEN, AppendInputs, StopReasons
from pagewire_kernels.append_tokens import NUM_COMPUTED as COMPUTED_ROW
from pagewire_kernels.append_tokens import NUM_TOKENS as TOKENS_ROW
from pagewire_kernels.append_tokens import STOP_REASON as REASON_ROW
from pagewire_kernels.append_tokens.reference import append_tokens
from pagewire_kernels.prepare_inputs import PreparedInputs, StepRows
from pagewire_kernels.prepare_inputs.reference import prepare_inputs
from pagewire_kernels.sequence_state import SequenceState, StateColumns

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
NUM_TOKENS, NUM_COMPUTED, STOP_REASON, MAX_LEN = 0, 1, 2, 4
BLOCK_SIZE = 16
REASONS = StopReasons(token=7, length=9, error=5)

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@starts_interpreter
def test_kernels_agree_with_their_references_in_the_interpreter():
    run_in_interpreter(__file__)


def sequence_state(num_slots=12, max_model_len=200, stopped=(), seed=0):
    """Sequences of random lengths; the last slot is the void one."""
    generator = torch.Generator().manual_seed(seed)
    ints = torch.full((num_slots + 1, 8), -5)
    ints[:, NUM_TOKENS] = torch.randint(60, 120, (num_slots + 1,), generator=generator)
    ints[:, NUM_COMPUTED] = ints[:, NUM_TOKENS] - 40
    ints[:, MAX_LEN] = max_model_len
    ints[:, STOP_REASON] = 0
    ints[list(stopped), STOP_REASON] = 3
    ints[-1] = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0])
    max_blocks = -(-max_model_len // BLOCK_SIZE)
    return SequenceState(
        ints=ints,
        token_ids=torch.randint(0, 1000, (num_slots + 1, max_model_len + 1), generator=generator, dtype=torch.int32),
        block_tables=torch.randint(0, 5000, (num_slots + 1, max_blocks), generator=generator, dtype=torch.int32),
        stop_token_ids=torch.full((num_slots + 1, 5), -1, dtype=torch.int32),
        columns=StateColumns(NUM_TOKENS, NUM_COMPUTED, STOP_REASON, MAX_LEN),
    )


def on_device(state):
    tensors = ("ints", "token_ids", "block_tables", "stop_token_ids")
    return replace(state, **{name: getattr(state, name).to(DEVICE, copy=True) for name in tensors})


def check_inputs(state, slots, query_lens, num_tokens, max_blocks):
    from pagewire_kernels.prepare_inputs import triton as kernel

    slots = torch.tensor(slots)
    query_lens = None if query_lens is None else torch.tensor(query_lens)
    rows = StepRows(state, slots, query_lens, BLOCK_SIZE, num_tokens, max_blocks)
    expected = prepare_inputs(rows)
    lens = None if query_lens is None else query_lens.to(DEVICE)
    actual = kernel.prepare_inputs(replace(rows, state=on_device(state), slots=slots.to(DEVICE), query_lens=lens))
    for field in fields(PreparedInputs):
        found, wanted = getattr(actual, field.name).cpu(), getattr(expected, field.name)
        assert found.dtype is wanted.dtype, field.name
        assert found.shape == wanted.shape, field.name
        if field.name != "block_tables":
            assert found.tolist() == wanted.tolist(), field.name
    for row, seq_len in enumerate(expected.seq_lens.tolist()):
        num_blocks = -(-seq_len // BLOCK_SIZE)
        assert torch.equal(actual.block_tables[row, :num_blocks].cpu(), expected.block_tables[row, :num_blocks])


@runs_kernels
def test_inputs_of_decodes():
    check_inputs(sequence_state(stopped=[4, 5]), [3, 4, 0, 11, 5, 12, 12], None, 7, 13)


@runs_kernels
def test_inputs_of_a_single_decode():
    check_inputs(sequence_state(), [6], None, 1, 8)


@runs_kernels
@pytest.mark.parametrize("num_padding", [0, 5])
def test_inputs_of_prefills_among_decodes(num_padding):
    query_lens = [1, 1, 40, 1, 17, 0, 33]
    check_inputs(sequence_state(stopped=[4, 8]), [3, 4, 0, 12, 8, 2, 11], query_lens, sum(query_lens) + num_padding, 13)


@runs_kernels
def test_inputs_of_more_rows_and_longer_prompts_than_a_tile_holds(monkeypatch):
    from pagewire_kernels.prepare_inputs import triton as kernel

    monkeypatch.setattr(kernel, "_BLOCK", 4)
    state = sequence_state(stopped=[2])
    check_inputs(state, [6, 7, 2, 8, 9, 0, 1, 5], [1, 1, 1, 1, 1, 31, 1, 40], 80, 13)
    check_inputs(state, [6, 7, 2], None, 3, 13)


@runs_kernels
def test_decodes_with_padding_are_refused():
    with pytest.raises(ValueError, match="2 rows of one token"):
        check_inputs(sequence_state(), [1, 2], None, 3, 13)


def check_append(state, slots, query_lens, sampled, sample_rows, num_sampled=None):
    """sampled: each row's only token, or a list of them."""
    from pagewire_kernels.append_tokens import triton as kernel

    inputs = [None if x is None else torch.tensor(x) for x in (slots, query_lens, sampled, sample_rows, num_sampled)]
    if inputs[2].dim() == 1:
        inputs[2] = inputs[2][:, None]
    mine = on_device(state)
    moved = [x if x is None else x.to(DEVICE) for x in inputs]
    report = kernel.append_tokens(AppendInputs(mine, *moved[:4], REASONS, moved[4]))
    expected = append_tokens(AppendInputs(state, *inputs[:4], REASONS, inputs[4]))
    assert report.tolist() == expected.tolist()
    assert mine.ints.tolist() == state.ints.tolist()
    assert torch.equal(mine.token_ids.cpu(), state.token_ids)
    return expected


@runs_kernels
def test_sampled_tokens_are_appended_until_a_sequence_stops():
    state = sequence_state(stopped=[4])
    state.stop_token_ids[2] = torch.tensor([8, 17, 5, -1, -1])
    state.stop_token_ids[3] = torch.tensor([8, 17, 5, 2, 3])
    state.ints[5, MAX_LEN] = state.ints[5, NUM_TOKENS] + 1
    state.ints[3, MAX_LEN] = state.ints[3, NUM_TOKENS] + 1
    known = state.ints[:, NUM_TOKENS].clone()
    slots = [0, 2, 3, 4, 5, 12, 1, 12, 7, 6]
    report = check_append(state, slots, None, [11, 17, 3, 11, 13, 8, 8, 9, 0, 2], None)
    assert report[FIRST_TOKEN].tolist() == [11, 17, 3, -1, 13, -1, 8, -1, 0, 2]
    assert report[REASON_ROW].tolist() == [0, 7, 7, 3, 9, 1, 0, 1, 0, 0]
    assert (report[TOKENS_ROW] - known[slots]).tolist() == [1, 1, 1, 0, 1, 0, 1, 0, 1, 1]


@runs_kernels
def test_rows_that_do_not_sample_only_count_what_they_computed():
    state = sequence_state(stopped=[4])
    computed = state.ints[:, NUM_COMPUTED].clone()
    slots, query_lens = [0, 2, 3, 4], [1, 30, 40, 1]
    report = check_append(state, slots, query_lens, [11, 12, 13], [0, -1, 2, 1])
    assert report[FIRST_TOKEN].tolist() == [11, -1, 13, -1]
    assert (report[COMPUTED_ROW] - computed[slots]).tolist() == [1, 30, 40, 0]


@runs_kernels
def test_a_step_in_which_nobody_samples():
    check_append(sequence_state(), [0, 2], [8, 9], torch.empty(0, dtype=torch.int64).tolist(), [-1, -1])


@runs_kernels
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_sampled", [2, 3, 5])
def test_runs_of_tokens_end_where_their_sequences_stop(max_sampled, seed):
    """More rows than one program has; a small vocabulary, so that stop tokens and -1 come anywhere in a run."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = 11
    state = sequence_state(stopped=[4], seed=seed)
    state.stop_token_ids[:8] = torch.randint(0, 30, (8, 5), generator=generator, dtype=torch.int32)
    state.ints[::3, MAX_LEN] = state.ints[::3, NUM_TOKENS] + 2
    state.ints[-1, MAX_LEN] = 0
    slots = [*torch.randperm(12, generator=generator)[: num_rows - 2].tolist(), 12, 12]
    query_lens = torch.full((num_rows,), 40 + max_sampled - 1)
    sample_rows = torch.randperm(num_rows, generator=generator)
    # Rows that do not catch up.
    query_lens[::4], sample_rows[::4] = 30, -1
    sampled = torch.randint(-1, 12, (num_rows, max_sampled), generator=generator)
    num_sampled = torch.randint(1, max_sampled + 1, (num_rows,), generator=generator)
    inputs = (query_lens, sampled, sample_rows, num_sampled)
    check_append(state, slots, *(x.tolist() for x in inputs))


@runs_kernels
def test_drafts_that_are_rejected_do_not_count_as_computed():
    state = sequence_state()
    known = state.ints[:, NUM_TOKENS].clone()
    slots = [3, 0, 5]
    report = check_append(state, slots, [44, 44, 44], [[9] * 5, [8] * 5, [7] * 5], None, [1, 3, 5])
    assert (report[TOKENS_ROW] - known[slots]).tolist() == [1, 3, 5]
    assert (report[COMPUTED_ROW] - known[slots]).tolist() == [0, 2, 4]
    assert report[FIRST_TOKEN:].T.tolist() == [[9, -1, -1, -1, -1], [8, 8, 8, -1, -1], [7] * 5]


@runs_kernels
@pytest.mark.parametrize("block", [4, 1024])
def test_runs_of_words_are_written_to_their_tables(monkeypatch, block):
    from pagewire_kernels.write_runs import HEADER_WORDS
    from pagewire_kernels.write_runs import reference as definition
    from pagewire_kernels.write_runs import triton as kernel

    monkeypatch.setattr(kernel, "_BLOCK", block)
    tables = [torch.arange(60, dtype=torch.int32).view(6, 10), torch.arange(24).view(6, 4), torch.rand(6, 3)]
    ours = [table.to(DEVICE, copy=True) for table in tables]
    words = torch.cat(
        [
            torch.arange(-9, 0, dtype=torch.int32),
            torch.tensor([1 << 40, -5]).view(torch.int32),
            torch.tensor([0.5, float("nan"), -1.0]).view(torch.int32),
        ]
    )
    headers = [[0, 20, 9, 0], [0, 59, 1, 3], [1, 6, 4, 9], [2, 3, 3, 13], [2, 0, 0, 16], [0, 0, 1, 8]]
    assert len(headers[0]) == HEADER_WORDS
    runs = torch.cat([torch.tensor(headers, dtype=torch.int32).view(-1), words])
    definition.write_runs(tables, runs, len(headers), 9)
    kernel.write_runs(ours, runs.to(DEVICE), len(headers), 9)
    assert tables[0][2].tolist() == [*range(-9, 0), 29]
    assert tables[1][0].tolist() == [0, 1, 2, (1 << 40)]
    for table, mine in zip(tables, ours, strict=True):
        assert torch.equal(table.view(torch.int32), mine.cpu().view(torch.int32))


@pytest.mark.gpu
@runs_kernels
def test_a_captured_step_runs_on_whatever_the_slots_hold():
    from pagewire_kernels.append_tokens.triton import append_tokens
    from pagewire_kernels.prepare_inputs.triton import prepare_inputs

    state = on_device(sequence_state(stopped=[4]))
    slots, sampled = torch.tensor([12, 12, 12], device=DEVICE), torch.tensor([[1], [2], [3]], device=DEVICE)

    def step():
        inputs = prepare_inputs(StepRows(state, slots, None, BLOCK_SIZE, num_tokens=3, max_blocks=13))
        return inputs, append_tokens(AppendInputs(state, slots, None, sampled, None, REASONS))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inputs, report = step()
    slots.copy_(torch.tensor([3, 4, 7]))
    before = state.ints[slots, NUM_COMPUTED].tolist()
    graph.replay()
    graph.replay()
    assert inputs.positions.tolist() == [before[0] + 1, 0, before[2] + 1]
    assert report[FIRST_TOKEN].tolist() == [1, -1, 3]
