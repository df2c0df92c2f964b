"""Models with recurrent state: the router's scheduler against the shard's engine, on random workloads and chosen ones.

The runner keeps a hash of all tokens in each state slot, so that a state that is shared, kept, evicted or overwritten
wrongly is noticed.
"""

from collections.abc import Callable

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from pagewire_common.cache_groups import PLAIN, CacheGroup
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import World, expected_output, make_request, output
from workloads import CACHE_GROUPS, Workload, play, workloads

GROUPS = st.one_of(st.just(PLAIN), st.just(PLAIN), CACHE_GROUPS)
"""Full attention or windows beside the states."""


def stateful(window: int) -> st.SearchStrategy[Workload]:
    return workloads(window, groups=GROUPS, has_states=True)


@pytest.mark.parametrize("window", [2, *(pytest.param(window, marks=pytest.mark.slow) for window in (1, 3, 4))])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_workloads_yield_every_token_once_and_leave_both_pools_whole(window: int, data: st.DataObject) -> None:
    play(data.draw(stateful(window)))


@settings(max_examples=20, deadline=None)
@given(workload=st.integers(1, 4).flatmap(stateful))
def test_ranks_that_learn_of_tokens_at_different_times_stay_identical(workload: Workload) -> None:
    play(workload, num_ranks=2)


@pytest.mark.parametrize(
    "reached",
    [
        pytest.param(lambda world: world.scheduler.num_preemptions > 0, marks=pytest.mark.slow),
        pytest.param(lambda world: world.scheduler.tokens.prompt_cached > 0, marks=pytest.mark.slow),
        pytest.param(lambda world: world.num_missed > 0, marks=pytest.mark.slow),
    ],
)
def test_workloads_reach_what_is_rare(reached: Callable[[World], bool]) -> None:
    few = settings(max_examples=1000, phases=[Phase.generate], database=None, deadline=None)
    find(stateful(2), lambda workload: reached(play(workload)), settings=few)


def limits(**changes: object) -> GroupLimits:
    values: dict = {
        "num_blocks": 200,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
        "groups": (CacheGroup(), CacheGroup(0, 0, 8)),
    }
    return GroupLimits(**(values | changes))


def run(world: World, *prompts: list[int], max_tokens: int = 3, **options: object) -> list[SequenceGroup]:
    """Runs requests to their end, together, and checks their tokens."""
    groups = [world.submit(make_request(prompt, max_tokens=max_tokens, **options)) for prompt in prompts]
    world.run()
    for group in groups:
        for sequence in group.sequences:
            expected = expected_output(group.request, sequence.index, 128, world.eos_share)
            assert output(group, sequence.index) == expected
    return groups


PROMPT = [1, 2, 3, 4, 5] * 4


def test_a_prompt_is_found_where_its_last_full_block_ends() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    [first] = run(world, PROMPT)
    [again], [longer] = run(world, PROMPT), run(world, [*PROMPT, 1, 2, 3])
    assert [group.num_cached_tokens for group in (first, again, longer)] == [0, 16, 16]
    assert world.num_missed == 0


def test_a_turn_goes_on_from_the_turn_before() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    prompt = PROMPT
    for _ in range(4):
        [group] = run(world, prompt)
        prompt = [*group.sequences[0].token_ids, 1, 2, 3, 4]
    assert group.num_cached_tokens == (group.num_prompt_tokens - 7 - 1) // 4 * 4


def test_the_second_prompt_with_a_common_beginning_leaves_a_checkpoint_for_the_third() -> None:
    """The first one's only checkpoint lies behind what the others share with it."""
    world = World(limits(), window=2, eos_share=0.0)
    common = PROMPT[:13]
    cached = [run(world, [*common, *end])[0].num_cached_tokens for end in ([1] * 12, [2] * 12, [3] * 12, [4])]
    assert cached == [0, 0, 12, 12]


def test_states_are_as_many_as_chosen_points_not_as_chunks() -> None:
    world = World(limits(max_num_batched_tokens=4), window=2, eos_share=0.0)
    run(world, [1, 2, 3, 4, 5] * 12)
    states = world.ranks[0].engine.states
    assert (states.num_cached, states.num_free) == (1, 8)


def test_a_checkpoint_is_evicted_by_sequences_before_they_lack_a_state() -> None:
    """All slots but the one that a sequence has written last are checkpoints; each further prompt takes the oldest."""
    world = World(limits(num_blocks=400), window=2, eos_share=0.0)
    prompts = [[first, second, *PROMPT] for first in range(1, 6) for second in (1, 2, 3)]
    for prompt in prompts:
        run(world, prompt)
    states = world.ranks[0].engine.states
    assert states.num_cached == states.num_blocks - 1
    assert run(world, prompts[-1])[0].num_cached_tokens == 20
    assert run(world, prompts[0])[0].num_cached_tokens == 0, "its blocks are cached and its state is not"


@pytest.mark.parametrize("window", [1, 2, 3])
def test_parallel_samples_begin_with_their_parents_state(window: int) -> None:
    """However far the parent is when they are forked."""
    world = World(limits(), window, eos_share=0.0)
    run(world, PROMPT, [*PROMPT, 3], max_tokens=9, n=2)
    run(world, PROMPT, max_tokens=9, n=4)
    world.check_whole()


@pytest.mark.parametrize("window", [1, 2])
def test_a_full_house_never_lacks_a_state(window: int) -> None:
    """Every slot is taken, and each sequence reads a checkpoint and writes its own state in the same step."""
    world = World(limits(), window, eos_share=0.0)
    run(world, PROMPT)
    run(world, *[[*PROMPT, end] for end in (1, 2, 3, 4) * 3], max_tokens=6)
    run(world, *[[*PROMPT, end] for end in (1, 2, 3, 4)], max_tokens=6, n=4)
    world.check_whole()


def test_a_preempted_sequence_is_computed_again_from_its_checkpoint() -> None:
    world = World(limits(num_blocks=14), window=2, eos_share=0.0)
    groups = run(world, [1, *PROMPT], [2, *PROMPT], max_tokens=30)
    assert world.scheduler.num_preemptions > 0
    assert all(group.num_output_tokens == 30 for group in groups)


def test_lost_checkpoints_send_a_request_back_once() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    run(world, PROMPT)
    world.lose_checkpoints()
    [group] = run(world, PROMPT)
    assert (world.num_missed, group.num_cached_tokens) == (1, 0)
