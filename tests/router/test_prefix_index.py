"""The router's guess at what the shards' prefix cache holds."""

import pytest
from pagewire.v1 import shard_pb2
from pagewire_common.block_hash import PrefixHashes
from pagewire_router.scheduling import prefix_index
from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.prefix_index import PrefixIndex
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import make_request

BLOCK_SIZE = 4
PROMPT = list(range(1, 18))
HASHES = PrefixHashes(PROMPT, BLOCK_SIZE).first(4)


def prefix(num_tokens: int = len(PROMPT)) -> PrefixHashes:
    return PrefixHashes(PROMPT[:num_tokens], BLOCK_SIZE)


def plan(step: int) -> PlanInFlight:
    return PlanInFlight(shard_pb2.StepPlan(step=step), 100)


def sequence(prompt: list[int] = PROMPT):
    (only,) = SequenceGroup(make_request(prompt), 100).sequences
    only.hash_prefix(BLOCK_SIZE)
    return only


def test_leading_blocks_count_up_to_the_first_that_is_not_cached() -> None:
    index = PrefixIndex()
    index.update([*HASHES[:2], HASHES[3]], ())
    assert index.num_cached_blocks(prefix()) == 2
    index.update([], [HASHES[0]])
    assert index.num_cached_blocks(prefix()) == 0


def test_the_block_of_the_last_token_never_counts() -> None:
    index = PrefixIndex()
    index.update(HASHES, ())
    assert [index.num_cached_blocks(prefix(n)) for n in (17, 16, 5, 4)] == [4, 3, 1, 0]


def test_long_prefixes_are_found_to_their_end() -> None:
    token_ids = [i % 5 for i in range(1000)]
    index = PrefixIndex()
    index.update(PrefixHashes(token_ids, BLOCK_SIZE).first(170), ())
    assert index.num_cached_blocks(PrefixHashes(token_ids, BLOCK_SIZE)) == 170


def test_what_a_plan_computes_counts_until_its_result_is_back() -> None:
    index, first, second = PrefixIndex(), plan(1), plan(2)
    index.expect(first, sequence(), 0, 10)
    assert index.num_cached_blocks(prefix()) == 2
    index.expect(second, sequence(), 10, 17)
    assert index.num_cached_blocks(prefix()) == 4
    index.on_result(first)
    assert index.num_cached_blocks(prefix()) == 0, "the result did not say that it is in the index"
    index.update(HASHES[:2], ())
    assert index.num_cached_blocks(prefix()) == 4
    index.on_result(second)
    assert index.num_cached_blocks(prefix()) == 2


def test_a_block_that_two_plans_compute_counts_until_the_later_is_back() -> None:
    index, first, second = PrefixIndex(), plan(1), plan(2)
    for computing in (first, second):
        index.expect(computing, sequence(), 0, 8)
    index.on_result(first)
    assert index.num_cached_blocks(prefix()) == 2
    index.on_result(second)
    assert index.num_cached_blocks(prefix()) == 0


def test_a_new_epoch_forgets_all_blocks() -> None:
    index = PrefixIndex()
    index.update(HASHES[:1], ())
    index.expect(plan(1), sequence(), 4, 8)
    index.clear()
    assert index.num_cached_blocks(prefix()) == 0


def test_the_hashes_of_one_plan_are_bounded_and_go_on_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_index, "MAX_NEW_HASHES", 3)
    index, asked = PrefixIndex(), prefix()
    index.update(HASHES, ())
    index.on_plan()
    assert (index.num_cached_blocks(asked), asked.num_known) == (3, 3)
    assert index.num_cached_blocks(asked) == 3, "known hashes cost nothing"
    assert index.num_cached_blocks(prefix()) == 0
    index.on_plan()
    assert index.num_cached_blocks(asked) == 4


def test_what_a_plan_computes_is_hashed_when_another_prompt_begins_like_it() -> None:
    index, computing, other = PrefixIndex(), plan(1), [9, *PROMPT[1:]]
    cold = sequence()
    index.expect(computing, cold, 0, 17)
    assert index.num_cached_blocks(PrefixHashes(other, BLOCK_SIZE)) == 0
    assert cold.prefix.num_known == 1
    assert index.num_cached_blocks(prefix()) == 4
    assert cold.prefix.num_known == 4
    index.on_result(computing)
    assert index.num_cached_blocks(prefix()) == 0


def test_a_prompt_is_hashed_once_and_as_far_as_it_hits() -> None:
    request = make_request(PROMPT)
    index = PrefixIndex()
    index.update(HASHES[:1], ())
    assert index.num_cached_blocks(request.prefix(BLOCK_SIZE)) == 1
    assert request.prefix(BLOCK_SIZE) is request.prefix(BLOCK_SIZE)
    assert request.prefix(8).block_size == 8
    cold = prefix()
    PrefixIndex().num_cached_blocks(cold)
    assert cold.num_known == 1
