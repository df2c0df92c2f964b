"""The device's rows: what an admission writes, and what it leaves alone."""

from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import root_digest
from pagewire_common.sampling_params import with_defaults
from pagewire_shard.engine.runner import RunBatch, StepTokens
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.execution.device_state import MAX_LEN, NUM_COMPUTED, NUM_TOKENS, STOP_REASON, DeviceState
from pagewire_shard.execution.host_transfer import CpuUplink
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.execution.warm_up import run_largest_step, warm_up
from pagewire_shard.parallel.stage import WHOLE
from pagewire_shard.slot_tables import SlotTables

CPU = torch.device("cpu")


def make_state(num_slots: int = 4) -> DeviceState:
    state = DeviceState(num_slots, 32, 8, CPU)
    state.token_ids.fill_(-7)
    state.block_tables.fill_(-7)
    return state


def fill(state: DeviceState, *sequences: Sequence, updates: Iterable[tuple[int, int, int]] = ()) -> None:
    tables = SlotTables(state.tables)
    state.fill({sequence.slot: state.row(sequence) for sequence in sequences}, list(updates), tables)
    tables.flush(CpuUplink().upload)


def make_sequence(slot: int, num_tokens: int, num_blocks: int = 0) -> Sequence:
    return Sequence(
        seq_id=slot,
        slot=slot,
        token_ids=[100 * slot + i for i in range(num_tokens)],
        num_prompt_tokens=max(1, num_tokens - 1),
        root=root_digest(""),
        sampling_params=with_defaults(inference_pb2.SamplingParams()),
        seed=0,
        stop=shard_pb2.StopConditions(max_tokens=5, min_tokens=2, token_ids=[slot, 99]),
        blocks=list(range(10 * slot, 10 * slot + num_blocks)),
        num_computed_tokens=8 * num_blocks,
    )


def test_several_sequences_are_written_at_once_each_to_its_row() -> None:
    state = make_state()
    sequences = [make_sequence(2, 17, 2), make_sequence(0, 3), make_sequence(3, 9, 1)]
    fill(state, *sequences)
    for sequence in sequences:
        num_tokens, num_blocks = len(sequence.token_ids), len(sequence.blocks)
        assert state.token_ids[sequence.slot, :num_tokens].tolist() == sequence.token_ids
        assert (state.token_ids[sequence.slot, num_tokens:] == -7).all()
        assert state.block_tables[sequence.slot, :num_blocks].tolist() == sequence.blocks
        assert (state.block_tables[sequence.slot, num_blocks:] == -7).all()
        row = state.ints[sequence.slot]
        assert row[[NUM_TOKENS, NUM_COMPUTED, STOP_REASON]].tolist() == [num_tokens, 8 * num_blocks, 0]
        assert row[MAX_LEN] == min(num_tokens + 4, 32)
        assert state.stop_token_ids[sequence.slot, :3].tolist() == [sequence.slot, 99, -1]
    for untouched in (1, state.void_slot):
        assert (state.token_ids[untouched] == -7).all()
        assert (state.ints[untouched, :STOP_REASON] == 0).all()


def test_a_row_is_the_sequence_as_it_was_admitted() -> None:
    state = make_state()
    sequence = make_sequence(1, 9, 1)
    row = state.row(sequence)
    sequence.blocks.append(5)
    sequence.num_computed_tokens = 9
    tables = SlotTables(state.tables)
    state.fill({1: row}, [], tables)
    tables.flush(CpuUplink().upload)
    assert state.ints[1, NUM_COMPUTED] == 8
    assert state.block_tables[1, 1] == -7


def test_table_updates_set_single_entries() -> None:
    state = make_state()
    fill(state, updates=[(0, 1, 41), (3, 0, 42)])
    assert state.block_tables[0].tolist() == [-7, 41, -7, -7]
    assert state.block_tables[3].tolist() == [42, -7, -7, -7]
    fill(state)
    assert (state.block_tables == -7).sum() == state.block_tables.numel() - 2


def test_updates_of_a_new_sequence_come_after_its_own_blocks() -> None:
    """The block that its first step writes to was shared, and a new one behind it is taken."""
    state = make_state()
    fill(state, make_sequence(1, 17, 2), updates=[(1, 1, 55), (1, 2, 56), (0, 0, 57)])
    assert state.block_tables[1].tolist() == [10, 55, 56, -7]
    assert state.block_tables[0].tolist() == [57, -7, -7, -7]


def test_what_does_not_fit_into_a_row_is_not_written_to_the_next() -> None:
    with pytest.raises(AssertionError, match="leave the row"):
        fill(make_state(), updates=[(1, 4, 7)])


def test_a_step_that_breaks_before_its_writes_leaves_none_to_the_next_epoch() -> None:
    class BrokenOnce(CpuUplink):
        is_broken = True

        def upload(self, *args: object, **kwargs: object) -> torch.Tensor:
            if self.is_broken:
                raise RuntimeError("out of memory")
            return super().upload(*args, **kwargs)

    state, uplink = make_state(), BrokenOnce()
    model = SimpleNamespace(spec=SimpleNamespace(vocab_size=16, layers=(), longest_short=0, stage=WHOLE))
    runner = ModelRunner(model, state, [], 8, uplink=uplink)
    runner.admit(make_sequence(1, 9, 1))
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.launch(RunBatch(table_updates=[(0, 0, 42)]))
    runner.end_epoch()
    uplink.is_broken = False
    runner.launch(RunBatch())
    assert (state.block_tables == -7).all()
    assert (state.token_ids == -7).all()


@pytest.mark.parametrize("block_size", [1, 2, 3, 16])
def test_the_warm_up_holds_no_more_blocks_than_its_tokens_fill(block_size: int) -> None:
    """A sequence may be no longer than one block."""
    runner = Recorder()
    warm_up(runner, block_size)
    lengths = {id(sequence): 0 for sequence in runner.admitted}
    for batch in runner.batches:
        (sequence,) = batch.sequences
        lengths[id(sequence)] = max(lengths[id(sequence)], batch.max_seq_len)
    assert len(lengths) == 2
    for sequence in runner.admitted:
        assert len(sequence.blocks) == -(-lengths[id(sequence)] // block_size)


class Recorder:
    """A runner that remembers what it ran."""

    def __init__(self) -> None:
        self.admitted: list[Sequence] = []
        self.batches: list[RunBatch] = []

    def admit(self, sequence: Sequence) -> None:
        self.admitted.append(sequence)

    def launch(self, batch: RunBatch):
        self.batches.append(batch)
        return StepTokens()


@pytest.mark.parametrize(
    ("num_seqs", "num_tokens", "query_lens"),
    [(4, 10, [1, 1, 1, 7]), (3, 50, [16, 16, 16]), (8, 3, [1, 1, 1]), (2, 100, [16, 16])],
)
def test_the_largest_step_fills_tokens_and_slots(num_seqs: int, num_tokens: int, query_lens: list[int]) -> None:
    runner = Recorder()
    run_largest_step(runner, num_seqs=num_seqs, num_tokens=num_tokens, max_model_len=16, num_logprobs=20)
    (batch,) = runner.batches
    assert batch.query_lens == query_lens
    assert batch.slots == list(range(len(query_lens)))
    assert batch.sample_lens == [1] * len(query_lens)
    assert max(len(sequence.token_ids) for sequence in runner.admitted) <= 16
