"""Mode SCORE: what a run returns, what it leaves behind, and what children forked from it share."""

import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.errors import PlanRefused
from scheduling_world import Rank, chain, next_scores

SAMPLE, SCORE = shard_pb2.RUN_MODE_SAMPLE, shard_pb2.RUN_MODE_SCORE
LIMITS = GroupLimits(num_blocks=24, block_size=4, max_num_seqs=6, max_num_batched_tokens=40, max_model_len=32)
SAMPLING = with_defaults(inference_pb2.SamplingParams(seed=3))
STOP = shard_pb2.StopConditions(token_ids=[0], max_tokens=12)


def admit(seq_id: int, **fields: object) -> shard_pb2.Admit:
    token_ids = [1 + i % 3 for i in range(9)]
    values = {"token_ids": token_ids, "num_prompt_tokens": 9, "sampling_params": SAMPLING, "stop": STOP}
    return shard_pb2.Admit(seq_id=seq_id, **{**values, **fields})


def run(rank: Rank, step: int, seq_ids: list[int], budgets: list[int], modes: list[int], **fields: object):
    plan = shard_pb2.StepPlan(step=step, run_seq_ids=seq_ids, run_token_budgets=budgets, run_modes=modes, **fields)
    rank.take(plan)
    return rank.result()


@pytest.fixture
def rank() -> Rank:
    return Rank(LIMITS, 0.0, 2, lazy=False)


def tokens_of(rank: Rank, seq_id: int) -> list[int]:
    return rank.engine._sequences[seq_id].token_ids


def test_a_row_is_scored_when_it_catches_up_and_appends_nothing(rank: Rank) -> None:
    first = run(rank, 1, [1, 2], [5, 9], [SCORE, SAMPLE], admits=[admit(1, num_scores=3), admit(2)])
    assert not first.row_scores
    result = run(rank, 2, [1, 2], [9, 1], [SCORE, SAMPLE])
    assert list(result.num_computed_tokens) == [9, 10]
    assert list(result.num_known_tokens) == [9, 11]
    assert list(result.num_sampled_tokens) == [0, 1]
    (scores,) = result.row_scores
    expected = next_scores(chain(tokens_of(rank, 1))[-1], False, 6)[:3]
    assert scores.run_index == 0
    assert list(scores.token_ids) == [token for token, _ in expected]
    assert list(scores.logprobs) == pytest.approx([logprob for _, logprob in expected])


def test_a_scored_sequence_has_nothing_left_to_compute(rank: Rank) -> None:
    run(rank, 1, [1], [9], [SCORE], admits=[admit(1, num_scores=3)])
    for step, mode in ((2, SCORE), (3, SAMPLE)):
        result = run(rank, step, [1], [1], [mode])
        assert not result.row_scores
        assert (result.num_computed_tokens[0], result.num_known_tokens[0]) == (9, 9)
        assert list(result.num_sampled_tokens) == [0]


def test_children_share_all_full_blocks_and_copy_the_last_one(rank: Rank) -> None:
    """9 tokens are two full blocks and one of one token: of three children two need a copy of that."""
    result = run(rank, 1, [1], [9], [SCORE], admits=[admit(1, num_scores=3)])
    assert list(result.free_blocks) == [24 - 3]
    forks = [
        shard_pb2.Fork(parent_seq_id=1, child_seq_id=i, num_tokens=9, appended_token_ids=[i], seed=0) for i in (2, 3, 4)
    ]
    result = run(rank, 2, [2, 3, 4], [1, 1, 1], [SCORE] * 3, forks=forks, release_seq_ids=[1])
    assert list(result.free_blocks) == [24 - 5]
    assert list(result.num_computed_tokens) == [10, 10, 10]
    for entry, token in zip(result.row_scores, (2, 3, 4), strict=True):
        values = chain([*[1 + i % 3 for i in range(9)], token])
        assert list(entry.token_ids) == [t for t, _ in next_scores(values[-1], False, 6)[:3]]


def test_a_child_does_not_hash_its_parents_blocks_again(rank: Rank) -> None:
    run(rank, 1, [1], [9], [SCORE], admits=[admit(1, num_scores=3)])
    fork = shard_pb2.Fork(parent_seq_id=1, child_seq_id=2, num_tokens=9, appended_token_ids=[2], seed=0)
    parent = rank.engine._sequences[1]
    run(rank, 2, [2], [1], [SCORE], forks=[fork])
    child = rank.engine._sequences[2]
    assert child.digests == parent.digests[:2]
    assert child.num_indexed_blocks == 2


def test_stop_tokens_are_no_scores_before_min_tokens(rank: Rank) -> None:
    stop = shard_pb2.StopConditions(token_ids=[0], max_tokens=12, min_tokens=2)
    result = run(rank, 1, [1], [9], [SCORE], admits=[admit(1, num_scores=6, stop=stop)])
    assert sorted(result.row_scores[0].token_ids) == [1, 2, 3, 4, 5]


def test_mode_score_is_refused_without_num_scores(rank: Rank) -> None:
    with pytest.raises(PlanRefused, match="run_modes: seq_id 1"):
        run(rank, 1, [1], [9], [SCORE], admits=[admit(1)])


def test_more_scores_than_the_shard_returns_are_refused(rank: Rank) -> None:
    with pytest.raises(PlanRefused, match="num_scores 7 exceeds max_scores 6"):
        run(rank, 1, [1], [9], [SCORE], admits=[admit(1, num_scores=7, stop=STOP)])
