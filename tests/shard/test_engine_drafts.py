"""The engine with rows that verify drafts and sample several tokens: a random router that keeps to the contract."""

from dataclasses import replace

import pytest
import scheduling_world
from draft_driver import DraftDriver, Driven, expected_tokens
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import root_digest
from pagewire_common.cache_groups import PLAIN, CacheGroup
from pagewire_common.sampling_params import with_defaults
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.errors import PlanRefused
from scheduling_world import EOS, Rank

SAMPLING = with_defaults(inference_pb2.SamplingParams(seed=3))
PROMPTS = st.lists(st.integers(1, 3), min_size=1, max_size=7)
INDICES = st.integers(0, 5)
CACHE_GROUPS = (
    PLAIN,
    (CacheGroup(3, 1),),
    (CacheGroup(0, 1), CacheGroup(1, 1)),
    (CacheGroup(0, 2), CacheGroup(4, 1), CacheGroup(7, 2)),
)
ROWS = st.lists(st.tuples(INDICES, st.integers(1, 6), st.integers(0, 4)), max_size=5)


class EngineMachine(RuleBasedStateMachine):
    """Builds plans rule by rule. Rules that the contract forbids at the time do nothing."""

    @initialize(
        window=st.integers(1, 4),
        block_size=st.integers(1, 4),
        num_blocks=st.integers(8, 40),
        max_draft_tokens=st.integers(0, 4),
        groups=st.sampled_from(CACHE_GROUPS),
    )
    def start(
        self, window: int, block_size: int, num_blocks: int, max_draft_tokens: int, groups: tuple[CacheGroup, ...]
    ) -> None:
        num_tables = sum(group.num_tables for group in groups)
        limits = GroupLimits(
            # What slides out of windows is not counted on.
            num_blocks=num_blocks if groups == PLAIN else 2 * num_tables * num_blocks,
            groups=groups,
            block_size=block_size,
            max_num_seqs=6,
            max_num_batched_tokens=24,
            max_model_len=24,
        )
        self.max_draft_tokens = max_draft_tokens
        self.driver = DraftDriver(limits, window, max_draft_tokens)

    def pick(self, index: int) -> Driven | None:
        on_shard = self.driver.on_shard
        return on_shard[index % len(on_shard)] if on_shard else None

    @rule(prompt=PROMPTS, seed=st.integers(0, 3), max_tokens=st.integers(1, 16))
    def admit(self, prompt: list[int], seed: int, max_tokens: int) -> None:
        # Half of the slots are for forks.
        if len(self.driver.on_shard) < 3:
            self.driver.admit(self.driver.new(prompt, seed, max_tokens))

    @rule()
    def admit_again(self) -> None:
        waiting = self.driver.waiting
        if waiting and self.driver.admit(waiting[0]):
            waiting.pop(0)

    @rule(index=INDICES, num_back=st.integers(0, 5), appended=st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def fork(self, index: int, num_back: int, appended: list[int]) -> None:
        for i in range(len(self.driver.on_shard)):
            parent = self.pick(index + i)
            if parent is not None and self.driver.fork(parent, num_back, appended, seed=7):
                break

    @rule(index=INDICES)
    def preempt(self, index: int) -> None:
        sequence = self.pick(index)
        if sequence is not None:
            self.driver.preempt(sequence)

    @rule(rows=ROWS)
    def step(self, rows: list[tuple[int, int, int]]) -> None:
        for index, budget, num_drafts in rows:
            sequence = self.pick(index)
            if sequence is not None:
                self.driver.run(sequence, budget, min(num_drafts, self.max_draft_tokens))
        self.driver.send()

    @rule()
    def result(self) -> None:
        self.driver.take_result()

    @invariant()
    def tokens_do_not_depend_on_drafts(self) -> None:
        if hasattr(self, "driver"):
            for sequence in (*self.driver.on_shard, *self.driver.finished):
                assert expected_tokens(sequence)[: len(sequence.tokens)] == sequence.tokens

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        for _ in range(200):
            for sequence in driver.on_shard.copy():
                if sequence.stop:
                    driver.release(sequence)
                elif not driver.run(sequence, 4, self.max_draft_tokens):
                    driver.run(sequence, 4, 0)
            if not driver.on_shard and not driver.plan.release_seq_ids:
                break
            if not driver.plan.run_seq_ids and driver.on_shard:
                # Too many for the pool.
                driver.release(driver.on_shard[-1])
                while driver.inflight:
                    driver.take_result()
            driver.send()
        while driver.inflight:
            driver.take_result()
        assert not driver.on_shard
        for sequence in driver.finished:
            assert sequence.tokens == expected_tokens(sequence)
        for rank in driver.ranks:
            rank.engine.pool.check_whole()


LIMITS = GroupLimits(num_blocks=16, block_size=4, max_num_seqs=4, max_num_batched_tokens=32, max_model_len=32)


def started(window: int = 2, max_draft_tokens: int = 4, **changes: int) -> Rank:
    """A shard with sequence 1, whose prompt of five tokens has been computed."""
    rank = Rank(replace(LIMITS, **changes), 0.0, window, lazy=False, max_draft_tokens=max_draft_tokens)
    rank.take(
        shard_pb2.StepPlan(
            step=1,
            admits=[
                shard_pb2.Admit(
                    seq_id=1,
                    token_ids=[1, 2, 3, 1, 2],
                    num_prompt_tokens=5,
                    sampling_params=SAMPLING,
                    stop=shard_pb2.StopConditions(max_tokens=20, token_ids=[EOS]),
                )
            ],
            run_seq_ids=[1],
            run_token_budgets=[5],
        )
    )
    rank.result()
    return rank


def run(rank: Rank, step: int, num_drafts: int, **changes: object) -> shard_pb2.StepResult:
    plan = shard_pb2.StepPlan(
        step=step, run_seq_ids=[1], run_token_budgets=[1], num_draft_tokens=[num_drafts], **changes
    )
    rank.take(plan)
    return rank.result()


def accept(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Has so many drafts accepted, step after step."""
    accepted = iter(numbers)
    monkeypatch.setattr(scheduling_world, "num_accepted", lambda *_: next(accepted))


def test_a_result_has_the_accepted_drafts_and_one_token_more(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, 0, 3, 0, 4)
    rank = started()
    for step, num_sampled, known in ((2, 4, 10), (3, 1, 11), (4, 5, 16)):
        result = run(rank, step, 4)
        assert list(result.num_sampled_tokens) == [num_sampled]
        assert list(result.num_known_tokens) == [known]
        assert list(result.num_computed_tokens) == [known - 1]
        assert len(result.sampled_token_ids) == num_sampled


def test_blocks_are_there_for_all_drafts_and_given_back_when_they_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, 0, 0, 0, 0, 0)
    rank = started(window=2)
    # Two blocks hold 6 known tokens. With 4 drafts there may be 11 tokens, then 16, all but one of them computed.
    assert [run(rank, step, 4).free_blocks[0] for step in (2, 3)] == [16 - 3, 16 - 4]
    # Steps 2 and 3 have sampled one token each. The shard takes that over with plans 4 and 5: there may be 13 tokens,
    # then 10.
    assert [run(rank, step, 0).free_blocks[0] for step in (4, 5)] == [16 - 3, 16 - 3]


def test_a_block_with_unverified_drafts_is_not_in_the_prefix_index(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, 0, 4, 0, 0, 0)
    rank = started(window=2)
    pool = rank.engine.pool
    # Tokens 6 to 10 are known to the device; the host knows of them with plan 4.
    assert [run(rank, step, num).num_known_tokens[0] for step, num in ((2, 4), (3, 0))] == [11, 12]
    assert pool.num_cached == 1
    run(rank, 4, 0)
    assert pool.num_cached == 2


def test_a_fork_beside_unverified_drafts_is_copied_where_the_next_token_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, 0, 0, 0, 0, 0, 0, 0)
    rank = started(window=3)
    run(rank, 2, 2)
    run(rank, 3, 2)
    # The parent has computed 7 to 11 tokens, so its next one may go to the block of tokens 4 to 7, which it shares.
    fork = shard_pb2.Fork(parent_seq_id=1, child_seq_id=2, num_tokens=5, appended_token_ids=[3], seed=1)
    batches = []
    launch = rank.runner.launch
    monkeypatch.setattr(rank.runner, "launch", lambda batch: batches.append(batch) or launch(batch))
    run(rank, 4, 0, forks=[fork])
    assert [source for source, _ in batches[0].copies] == [1]
    rank.take(shard_pb2.StepPlan(step=5, run_seq_ids=[1, 2], run_token_budgets=[1, 1]))
    assert list(rank.result().num_sampled_tokens) == [1, 1]


def test_a_stop_token_among_the_drafts_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept(monkeypatch, *[0] * 5, *[4] * 20)
    tokens = [EOS if position == 7 else 1 for position in range(40)]
    monkeypatch.setattr(scheduling_world, "next_token", lambda last, seed, position, share: tokens[position])
    rank = started()
    assert run(rank, 2, 0).num_known_tokens == [7]
    result = run(rank, 3, 4)
    assert list(result.sampled_token_ids) == [EOS]
    assert list(result.stop_reasons) == [shard_pb2.STOP_REASON_TOKEN]
    assert list(run(rank, 4, 4).num_sampled_tokens) == [0]
    assert rank.engine.pool.num_cached == 1


def test_max_tokens_within_the_drafts_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, 0, *[4] * 20)
    rank = started(window=1)
    lengths = []
    for step in range(2, 9):
        result = run(rank, step, 4)
        lengths.append(result.num_known_tokens[0])
    assert lengths == [11, 16, 21, 25, 25, 25, 25]
    assert result.stop_reasons[0] == shard_pb2.STOP_REASON_LENGTH


@pytest.mark.parametrize(
    ("num_tokens", "computed", "unverified", "budget", "num_drafts", "expected"),
    [
        (8, 3, 0, 4, 4, (4, 0)),
        (8, 3, 0, 5, 4, (9, 5)),
        (8, 7, 0, 1, 0, (1, 1)),
        (17, 16, 0, 1, 4, (3, 3)),
        (19, 18, 0, 1, 4, (1, 1)),
        (20, 19, 0, 1, 4, (0, 0)),
        (22, 21, 4, 1, 4, (1, 1)),
        (23, 22, 3, 1, 4, (0, 0)),
    ],
)
def test_a_row_has_no_more_drafts_than_its_sequence_has_room_for(
    num_tokens: int, computed: int, unverified: int, budget: int, num_drafts: int, expected: tuple[int, int]
) -> None:
    sequence = Sequence(
        seq_id=1,
        slot=0,
        token_ids=[1] * num_tokens,
        num_prompt_tokens=4,
        root=root_digest(""),
        sampling_params=SAMPLING,
        seed=0,
        stop=shard_pb2.StopConditions(),
        max_len=20,
    )
    sequence.num_computed_tokens, sequence.num_unverified_tokens = computed, unverified
    assert sequence.next_row(budget, num_drafts) == expected


def test_drafts_count_towards_the_tokens_of_a_step() -> None:
    rank = started(max_draft_tokens=20, max_num_batched_tokens=16)
    with pytest.raises(PlanRefused, match="would compute 17 tokens, drafts included"):
        run(rank, 2, 16)


def test_rows_that_sample_several_tokens_change_nothing_but_the_pace() -> None:
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
