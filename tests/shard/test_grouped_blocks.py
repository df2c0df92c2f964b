"""The engine's blocks in a model with a sliding window: what slides out, and what children still need."""

import grpc
import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.cache_groups import CacheGroup
from pagewire_common.sampling_params import with_defaults
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.errors import PlanRefused
from scheduling_world import Rank

PROMPT = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
SAMPLING = with_defaults(inference_pb2.SamplingParams(seed=3))


def rank(window: int) -> Rank:
    """Blocks of two tokens, one table that keeps all and two with the window."""
    groups = (CacheGroup(0, 1), CacheGroup(window, 2))
    limits = GroupLimits(100, 2, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64, groups=groups)
    return Rank(limits, eos_share=0.0, window=1, lazy=False, vocab_size=10)


def compute_prompt(shard: Rank, fork_from: int = 0) -> shard_pb2.StepResult:
    admit = shard_pb2.Admit(
        seq_id=1,
        token_ids=PROMPT,
        num_prompt_tokens=len(PROMPT),
        sampling_params=SAMPLING,
        stop=shard_pb2.StopConditions(max_tokens=9),
        fork_from=fork_from,
    )
    shard.take(shard_pb2.StepPlan(step=1, admits=[admit], run_seq_ids=[1], run_token_budgets=[len(PROMPT)]))
    return shard.result()


def fork_at(shard: Rank, num_tokens: int) -> shard_pb2.StepResult:
    appended = [*PROMPT[num_tokens:], 3]
    fork = shard_pb2.Fork(parent_seq_id=1, child_seq_id=2, num_tokens=num_tokens, appended_token_ids=appended, seed=5)
    shard.take(shard_pb2.StepPlan(step=2, forks=[fork], run_seq_ids=[2], run_token_budgets=[len(appended)]))
    return shard.result()


def test_a_prompt_keeps_its_window_when_its_plan_has_been_applied() -> None:
    result = compute_prompt(rank(window=4))
    assert list(result.free_blocks) == [100 - 6 - 2 * 2]
    assert len(result.cache_hashes_added) == 6 * 3, "what slid out is findable"


@pytest.mark.parametrize("num_tokens", [11, 12])
def test_a_child_is_forked_from_all_tokens_or_all_but_the_last(num_tokens: int) -> None:
    shard = rank(window=5)
    compute_prompt(shard)
    result = fork_at(shard, num_tokens)
    assert list(result.num_sampled_tokens) == [1]
    assert result.num_shared_window_blocks > 0


def test_a_fork_whose_window_has_been_given_back_is_refused() -> None:
    shard = rank(window=4)
    compute_prompt(shard)
    with pytest.raises(PlanRefused, match="do not keep what num_tokens 6 needs") as refused:
        fork_at(shard, 6)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_what_children_will_need_is_kept_until_they_are_forked() -> None:
    shard = rank(window=4)
    result = compute_prompt(shard, fork_from=6)
    assert list(result.free_blocks) == [100 - 6 - 2 * 5]
    result = fork_at(shard, 6)
    assert list(result.num_sampled_tokens) == [1]
    # The parent holds its last 4 tokens again, 2 blocks a table; the child has computed 13 and keeps 4.
    parent_and_child = (6 + 7 - 3) + 2 * (2 + 3)
    assert list(result.free_blocks) == [100 - parent_and_child]
