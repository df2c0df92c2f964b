"""The engine's states in a model with recurrent layers: slots that are read and written, checkpoints, forks."""

import grpc
import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.cache_groups import CacheGroup
from pagewire_common.sampling_params import with_defaults
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.errors import PlanRefused
from scheduling_world import HashRunner, Rank

PROMPT = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
SAMPLING = with_defaults(inference_pb2.SamplingParams(seed=3))


class RecordingRunner(HashRunner):
    """Remembers which slots each step reads and writes."""

    def forward(self, batch: RunBatch) -> None:
        self.moves = list(zip(batch.read_slots, batch.write_slots, strict=True))
        super().forward(batch)


class Shard(Rank):
    """Blocks of two tokens, and a plan at a time."""

    def __init__(self, num_states: int = 8) -> None:
        groups = (CacheGroup(), CacheGroup(0, 0, num_states))
        limits = GroupLimits(100, 2, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, groups=groups)
        super().__init__(limits, eos_share=0.0, window=1, lazy=False, vocab_size=10, make_runner=RecordingRunner)
        self.step = 0

    def plan(self, budgets: dict[int, int], **fields: object) -> shard_pb2.StepResult:
        """Runs sequences with these budgets."""
        self.step += 1
        self.take(
            shard_pb2.StepPlan(
                step=self.step, run_seq_ids=list(budgets), run_token_budgets=list(budgets.values()), **fields
            )
        )
        return self.result()

    @property
    def moves(self) -> list[tuple[int, int]]:
        return self.runner.moves  # type: ignore[attr-defined]


def admit(seq_id: int, *, checkpoints: tuple[int, ...] = (), fork_from: int = 0) -> shard_pb2.Admit:
    return shard_pb2.Admit(
        seq_id=seq_id,
        token_ids=PROMPT,
        num_prompt_tokens=len(PROMPT),
        sampling_params=SAMPLING,
        stop=shard_pb2.StopConditions(max_tokens=9),
        checkpoints=checkpoints,
        fork_from=fork_from,
    )


def test_a_sequence_writes_the_slot_that_it_reads_but_after_a_checkpoint() -> None:
    shard = Shard()
    shard.plan({1: 4}, admits=[admit(1, checkpoints=(6,))])
    [(read, first)] = shard.moves
    assert read == -1
    assert list(shard.plan({1: 64}).num_computed_tokens) == [6], "the chunk ends at the checkpoint"
    assert shard.moves == [(first, first)]
    shard.plan({1: 64})
    [(read, second)] = shard.moves
    assert (read, first != second) == (first, True)
    shard.plan({1: 1})
    assert shard.moves == [(second, second)]
    assert shard.engine.states.num_cached == 1


def test_a_hit_reads_the_checkpoint_and_leaves_it() -> None:
    shard = Shard()
    shard.plan({1: 6}, admits=[admit(1, checkpoints=(6,))])
    [(_, checkpoint)] = shard.moves
    result = shard.plan({2: 64, 3: 64}, release_seq_ids=[1], admits=[admit(2), admit(3)])
    assert list(result.num_cached_tokens) == [6, 6]
    assert [read for read, _ in shard.moves] == [checkpoint, checkpoint]
    assert len({checkpoint, *(write for _, write in shard.moves)}) == 3
    assert list(shard.plan({4: 64}, release_seq_ids=[2, 3], admits=[admit(4)]).num_cached_tokens) == [6]


def test_blocks_without_a_state_are_no_prefix() -> None:
    """All blocks of the prompt are cached, and no state is but one that lies behind other tokens."""
    shard = Shard()
    shard.plan({1: 64}, admits=[admit(1)])
    assert shard.engine.pool.num_cached == 6
    other = shard_pb2.Admit()
    other.CopyFrom(admit(2, checkpoints=(10,)))
    other.token_ids[:] = [5, *PROMPT[1:]]
    shard.plan({2: 64}, admits=[other])
    assert shard.engine.states.num_cached == 1
    assert list(shard.plan({3: 64}, admits=[admit(3)]).num_cached_tokens) == [0]


def test_a_hit_without_its_state_cannot_be_run() -> None:
    """Built by hand, since no plan leads to it."""
    shard = Shard()
    shard.plan({1: 6}, admits=[admit(1, checkpoints=(6,))])
    sequence = shard.engine._sequences[1]
    shard.engine.states.release([sequence.state_slot])
    sequence.state_slot = -1
    with pytest.raises(AssertionError, match="do not begin together"):
        shard.plan({1: 64})


def test_a_checkpoint_whose_blocks_are_gone_is_no_prefix() -> None:
    shard = Shard()
    shard.plan({1: 6}, admits=[admit(1, checkpoints=(6,))])
    shard.plan({}, release_seq_ids=[1])
    shard.engine.pool.forget_all()
    assert shard.engine.states.num_cached == 1
    assert list(shard.plan({2: 64}, admits=[admit(2)]).num_cached_tokens) == [0]


def test_children_begin_with_the_state_that_is_kept_for_them() -> None:
    shard = Shard()
    shard.plan({1: 64}, admits=[admit(1, fork_from=11)])
    [(_, kept)] = shard.moves
    shard.plan({1: 64})
    shard.plan({1: 1})
    forks = [
        shard_pb2.Fork(parent_seq_id=1, child_seq_id=2 + i, num_tokens=11, appended_token_ids=[2], seed=i)
        for i in range(2)
    ]
    result = shard.plan({1: 1, 2: 1, 3: 1}, forks=forks)
    assert list(result.num_sampled_tokens) == [1, 1, 1]
    assert [read for read, _ in shard.moves[1:]] == [kept, kept]
    assert kept not in [write for _, write in shard.moves]


def test_a_parent_may_be_released_by_the_plan_that_forks_it() -> None:
    shard = Shard()
    shard.plan({1: 64}, admits=[admit(1, fork_from=11)])
    shard.plan({1: 64})
    fork = shard_pb2.Fork(parent_seq_id=1, child_seq_id=2, num_tokens=11, appended_token_ids=[2], seed=5)
    assert list(shard.plan({2: 1}, forks=[fork], release_seq_ids=[1]).num_sampled_tokens) == [1]
    shard.plan({}, release_seq_ids=[2])
    shard.engine.states.check_whole()


def test_a_fork_from_where_no_state_is_kept_is_refused() -> None:
    shard = Shard()
    shard.plan({1: 64}, admits=[admit(1)])
    fork = shard_pb2.Fork(parent_seq_id=1, child_seq_id=2, num_tokens=11, appended_token_ids=[2, 3], seed=5)
    with pytest.raises(PlanRefused, match="do not keep what num_tokens 11 needs") as refused:
        shard.plan({2: 2}, forks=[fork])
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_plan_that_needs_more_states_than_there_are_is_refused_as_a_whole() -> None:
    shard = Shard(num_states=2)
    shard.plan({1: 64, 2: 64}, admits=[admit(1), admit(2)])
    with pytest.raises(PlanRefused) as refused:
        shard.plan({1: 1, 2: 1, 3: 64}, admits=[admit(3)])
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_plan_whose_hit_takes_the_last_free_state_is_refused() -> None:
    shard = Shard(num_states=2)
    shard.plan({1: 6}, admits=[admit(1, checkpoints=(6,))])
    other = admit(2)
    other.token_ids[:] = [5, *PROMPT[1:]]
    shard.plan({2: 64}, release_seq_ids=[1], admits=[other])
    assert (shard.engine.states.num_free, shard.engine.states.num_cached) == (1, 1)
    with pytest.raises(PlanRefused) as refused:
        shard.plan({3: 64}, admits=[admit(3)])
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("checkpoints", [(3,), (4, 2), (4, 4), (12,), (0,)])
def test_checkpoints_that_are_no_ascending_ends_of_blocks_are_refused(checkpoints: tuple[int, ...]) -> None:
    with pytest.raises(PlanRefused, match="checkpoint") as refused:
        Shard().plan({1: 64}, admits=[admit(1, checkpoints=checkpoints)])
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_drafts_are_refused() -> None:
    """A rejected draft would leave a state that cannot be undone."""
    shard = Shard()
    with pytest.raises(PlanRefused, match="num_draft_tokens 2 exceeds max_draft_tokens 0"):
        shard.plan({1: 64}, admits=[admit(1)], num_draft_tokens=[2])
