"""Sequences of one plan that share a prefix: computed by the first row that has it, read by those behind it."""

import copy

import grpc
import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import PrefixHashes
from pagewire_common.sampling_params import with_defaults
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.errors import PlanRefused
from scheduling_world import Rank

BLOCK_SIZE = 4
SAMPLING = with_defaults(inference_pb2.SamplingParams(seed=3))
STOP = shard_pb2.StopConditions(max_tokens=4)
PREFIX = [1, 2, 3, 4, 5] * 2
"""Two blocks and two tokens."""


def admit(seq_id: int, token_ids: list[int], **fields: object) -> shard_pb2.Admit:
    values = {"num_prompt_tokens": len(token_ids), "sampling_params": SAMPLING, "stop": STOP}
    return shard_pb2.Admit(seq_id=seq_id, token_ids=token_ids, **{**values, **fields})


def rank(num_blocks: int = 64) -> Rank:
    limits = GroupLimits(num_blocks, BLOCK_SIZE, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64)
    return Rank(limits, eos_share=0.0, window=1, lazy=False, vocab_size=10)


def run(shard: Rank, *admits: shard_pb2.Admit, step: int = 1, **rows: int) -> shard_pb2.StepResult:
    """Runs a plan with these rows: a seq_id, as s1, and its budget. The others have what they are admitted with."""
    budgets = {admit.seq_id: len(admit.token_ids) for admit in admits}
    budgets = {int(name[1:]): budget for name, budget in rows.items()} or budgets
    plan = shard_pb2.StepPlan(step=step, admits=admits, run_seq_ids=budgets, run_token_budgets=budgets.values())
    shard.take(plan)
    return shard.result()


def blocks_of(shard: Rank, seq_id: int) -> list[int]:
    return shard.engine._sequences[seq_id].blocks


def test_a_prefix_is_computed_by_the_first_row_and_its_blocks_are_the_same() -> None:
    shard = rank()
    prompts = [[*PREFIX, 1, 2], [*PREFIX, 1, 3], [*PREFIX, 2]]
    result = run(shard, *[admit(i, prompt) for i, prompt in enumerate(prompts, 1)])
    assert list(result.num_cached_tokens) == [0, 8, 8]
    assert list(result.num_sampled_tokens) == [1, 1, 1]
    assert shard.runner.tokens_of_steps == [12 + 4 + 3]
    first, second, third = (blocks_of(shard, i) for i in (1, 2, 3))
    assert first[:2] == second[:2] == third[:2]
    assert len({first[2], second[2], third[2]}) == 3
    expected = PrefixHashes(prompts[0], 4).first(3) + PrefixHashes(prompts[1], 4).first(3)[2:]
    assert sorted(result.cache_hashes_added) == sorted(expected), "each block is told once"


def test_a_row_that_borrows_lends_what_it_computes_itself() -> None:
    shard = rank()
    result = run(shard, admit(1, [*PREFIX, 6]), admit(2, [*PREFIX, 7, 7, 7]), admit(3, [*PREFIX, 7, 7, 8]))
    assert list(result.num_cached_tokens) == [0, 8, 12]
    assert blocks_of(shard, 3)[:3] == blocks_of(shard, 2)[:3]
    assert shard.runner.tokens_of_steps == [11 + 5 + 1]


@pytest.mark.parametrize(("num_tokens", "num_cached"), [(8, 4), (9, 8), (4, 0), (5, 4)])
def test_a_prompt_that_is_covered_whole_computes_its_last_token(num_tokens: int, num_cached: int) -> None:
    shard = rank()
    result = run(shard, admit(1, [*PREFIX, 6]), admit(2, PREFIX[:num_tokens]))
    assert list(result.num_cached_tokens) == [0, num_cached]
    assert list(result.num_sampled_tokens) == [1, 1]
    result = run(shard, step=2, s1=1, s2=1)
    assert list(result.num_sampled_tokens) == [1, 1]


def test_cached_blocks_come_first_and_are_held_while_others_are_taken() -> None:
    """The pool has just what is needed: a cached block that were evicted for the first row would be missed."""
    shard = rank(num_blocks=5)
    run(shard, admit(1, PREFIX[:5]))
    shard.take(shard_pb2.StepPlan(step=2, release_seq_ids=[1]))
    shard.result()
    result = run(shard, admit(2, [*PREFIX, 6, 6]), admit(3, [*PREFIX, 7]), step=3)
    assert list(result.num_cached_tokens) == [4, 8]
    assert result.free_blocks[0] == 1


@pytest.mark.parametrize(("budget", "num_cached"), [(3, 0), (4, 4), (7, 4), (8, 8), (10, 8)])
def test_blocks_that_the_first_row_does_not_finish_are_not_shared(budget: int, num_cached: int) -> None:
    shard = rank()
    result = run(shard, admit(1, [*PREFIX, 6]), admit(2, [*PREFIX, 7]), s1=budget, s2=11)
    assert list(result.num_cached_tokens) == [0, num_cached]
    assert shard.runner.tokens_of_steps == [budget + 11 - num_cached]


def test_a_chunk_of_an_earlier_admission_is_shared_with_what_it_had_computed() -> None:
    shard = rank()
    run(shard, admit(1, [*PREFIX, 6, 6, 6]), s1=6)
    result = run(shard, admit(2, [*PREFIX, 6, 6, 7]), step=2, s1=7, s2=13)
    assert list(result.num_cached_tokens) == [12]
    assert blocks_of(shard, 2)[:3] == blocks_of(shard, 1)[:3]


def test_a_row_before_the_one_that_computes_a_prefix_shares_nothing() -> None:
    """What is found follows the order of the run, so that every rank finds the same."""
    shard = rank()
    result = run(shard, admit(1, [*PREFIX, 6]), admit(2, [*PREFIX, 7]), s2=11, s1=11)
    assert list(result.num_cached_tokens) == [0, 8]
    assert shard.engine._sequences[1].num_cached_tokens == 8


def test_an_admitted_sequence_that_does_not_run_borrows_nothing() -> None:
    shard = rank()
    run(shard, admit(1, [*PREFIX, 6]), admit(2, [*PREFIX, 7]), s1=11)
    result = run(shard, step=2, s2=11)
    assert list(result.num_cached_tokens) == [0]
    assert list(result.num_sampled_tokens) == [1]


@pytest.mark.parametrize("fields", [{"cache_salt": "other"}, {"min_recompute_from": 3}])
def test_a_salt_and_a_limit_count_within_a_plan_too(fields: dict[str, object]) -> None:
    result = run(rank(), admit(1, [*PREFIX, 6]), admit(2, [*PREFIX, 7], **fields))
    assert list(result.num_cached_tokens) == [0, 0]


def test_the_room_for_shared_blocks_is_needed_once() -> None:
    plan = shard_pb2.StepPlan(
        step=1,
        admits=[admit(1, [*PREFIX, 6]), admit(2, [*PREFIX, 7])],
        run_seq_ids=[1, 2],
        run_token_budgets=[11, 11],
    )
    rank(num_blocks=4).take(copy.deepcopy(plan))
    small = rank(num_blocks=3)
    with pytest.raises(PlanRefused) as refused:
        small.take(plan)
    assert refused.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    small.engine.pool.check_whole()
    assert not small.engine.cached_hashes(), "nothing of a refused plan is applied"


def test_shared_blocks_outlive_the_sequence_that_computed_them() -> None:
    shard = rank()
    run(shard, admit(1, [*PREFIX, 6]), admit(2, [*PREFIX, 7]))
    shard.take(shard_pb2.StepPlan(step=2, release_seq_ids=[1], run_seq_ids=[2], run_token_budgets=[1]))
    assert list(shard.result().num_sampled_tokens) == [1], "the runner has checked what the cache holds"


def test_blocks_of_a_sequence_without_finite_logits_are_found_no_more_and_kept_by_those_that_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with any cached block: whoever shares one that is not finite has no finite logits either."""
    shard = rank()
    run_row = type(shard.runner)._run

    def fail_first(self, row: dict, query_len: int, sample_len: int) -> list[int]:
        sampled = run_row(self, row, query_len, sample_len)
        if row["seed"] == 99:
            row["stop"], sampled = shard_pb2.STOP_REASON_ERROR, []
            row["tokens"].pop()
        return sampled

    monkeypatch.setattr(type(shard.runner), "_run", fail_first)
    failing = with_defaults(inference_pb2.SamplingParams(seed=99))
    result = run(shard, admit(1, [*PREFIX, 6], sampling_params=failing), admit(2, [*PREFIX, 7]))
    assert list(result.stop_reasons) == [shard_pb2.STOP_REASON_ERROR, 0]
    result = run(shard, admit(3, [*PREFIX, 8]), step=2, s2=1, s3=11)
    assert list(result.num_cached_tokens) == [0]
    assert sorted(result.cache_hashes_removed) == [], "they left the index and entered it again in this step"
    assert list(result.num_sampled_tokens) == [1, 1]
    assert set(blocks_of(shard, 3)).isdisjoint(blocks_of(shard, 2))
