"""Scheduler, engine and pool of models with several cache groups, on random workloads and on chosen ones.

The tests of test_scheduling.py are of models with one table that keeps all tokens.
"""

from collections.abc import Callable

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from pagewire_common.cache_groups import CacheGroup
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import World, expected_output, make_request, output
from workloads import CACHE_GROUPS, Submit, Workload, play, workloads

MIXED = (CacheGroup(0, 1), CacheGroup(8, 2))


def limits(**changes: object) -> GroupLimits:
    values: dict = {
        "num_blocks": 200,
        "block_size": 4,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
        "groups": MIXED,
    }
    return GroupLimits(**values | changes)


def check_outputs(world: World, groups: list[SequenceGroup]) -> None:
    for group in groups:
        for sequence in group.sequences:
            expected = expected_output(group.request, sequence.index, world.scheduler.limits.max_model_len, 0.0)
            assert output(group, sequence.index) == expected


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_workloads_yield_every_token_once_and_leave_the_pool_whole(window: int, data: st.DataObject) -> None:
    play(data.draw(workloads(window, groups=CACHE_GROUPS)))


@settings(max_examples=40, deadline=None)
@given(workload=st.integers(1, 4).flatmap(lambda window: workloads(window, groups=CACHE_GROUPS)))
def test_ranks_that_learn_of_tokens_at_different_times_stay_identical(workload: Workload) -> None:
    play(workload, num_ranks=2)


@pytest.mark.parametrize(
    "reached",
    [
        lambda world: world.scheduler.num_preemptions > 0,
        lambda world: world.scheduler.tokens.prompt_cached > 0,
        lambda world: world.num_missed > 0,
        lambda world: world.num_shared_window_blocks > 4,
    ],
)
def test_workloads_reach_what_is_rare(reached: Callable[[World], bool]) -> None:
    few = settings(max_examples=1000, phases=[Phase.generate], database=None, deadline=None)
    find(workloads(2, groups=CACHE_GROUPS), lambda workload: reached(play(workload)), settings=few)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_sequences_that_share_a_window_are_not_promised_its_blocks_again(window: int) -> None:
    """Each slides off what they share, and then holds as many blocks of its own. What is free until then is taken."""
    own_limits = limits(
        num_blocks=25, block_size=1, max_num_batched_tokens=16, max_model_len=40, groups=(CacheGroup(8, 1),)
    )
    world = World(own_limits, window, eos_share=0.0)
    prompt = [1, 2, 3, 4] * 3
    groups = [world.submit(make_request(prompt, max_tokens=28, seed=0))]
    world.step()
    groups += [world.submit(make_request(prompt, max_tokens=28, seed=seed, arrival_s=seed)) for seed in (1, 2, 3)]
    world.run()
    check_outputs(world, groups)
    assert groups[1].num_cached_tokens == 11
    assert world.max_running < 4
    world.check_whole()


def test_drafts_take_no_more_than_a_sequence_needs_to_go_on() -> None:
    """Blocks behind a window are kept until drafts are verified, which takes further plans."""
    own_limits = limits(
        num_blocks=17, block_size=1, max_num_seqs=2, max_num_batched_tokens=2, max_model_len=11,
        groups=(CacheGroup(0, 1), CacheGroup(1, 2)),
    )  # fmt: skip
    play(Workload(own_limits, 4, 0.0, 1, 0, [Submit([1], max_tokens=9)]))


def test_blocks_that_slid_out_are_free_and_stay_findable() -> None:
    world = World(limits(num_blocks=100), window=1, eos_share=0.0)
    prompt = [1, 2, 3, 4] * 10
    world.submit(make_request(prompt, max_tokens=40, seed=1))
    for _ in range(21):
        world.step()
    pool = world.ranks[0].engine.pool
    # 60 tokens in the table that keeps all; 8 and what lies in the same block in each of the two others.
    assert pool.num_blocks - pool.num_free == 15 + 2 * 2
    world.run()
    again = world.submit(make_request([*prompt[:20], 5], max_tokens=2, seed=2))
    world.run()
    assert again.num_cached_tokens == 20, "its last 8 tokens had slid out of the first one's window"


def test_a_prefix_counts_as_far_as_every_table_has_it() -> None:
    """Blocks that slid out are evicted before those that a sequence held to its end."""
    world = World(limits(num_blocks=41), window=1, eos_share=0.0)
    prompt = [1, 2, 3, 4] * 6
    world.submit(make_request(prompt, max_tokens=1, seed=1))
    world.run()
    whole, part = ([*prompt, 5], [*prompt[:12], 5])
    # Takes all but what the first one held last.
    world.submit(make_request([3] * 44, max_tokens=1, seed=1))
    world.run()
    found = []
    for tokens in (whole, part):
        group = world.submit(make_request(tokens, max_tokens=1, seed=2))
        world.run()
        check_outputs(world, [group])
        found.append(group.num_cached_tokens)
    assert found[1] <= 12
    world.check_whole()


def test_a_model_of_windows_alone_holds_the_same_however_long_it_gets() -> None:
    world = World(limits(groups=(CacheGroup(8, 3),), num_blocks=60), window=2, eos_share=0.0)
    group = world.submit(make_request([1, 2, 3], max_tokens=120, seed=1))
    held = []
    while world.step():
        held.append(60 - world.ranks[0].engine.pool.num_free)
    assert max(held[20:-5]) <= 3 * 3
    check_outputs(world, [group])


def test_a_long_prompt_is_computed_in_chunks_that_windows_have_room_for() -> None:
    """Two windows of tokens at a time: the pool need not hold the whole prompt."""
    own_limits = limits(
        num_blocks=2 * ((2000 + 300) // 4 + 2), max_num_batched_tokens=4096, max_model_len=4096,
        groups=(CacheGroup(1000, 1),),
    )  # fmt: skip
    world = World(own_limits, window=1, eos_share=0.0)
    group = world.submit(make_request([1, 2, 3, 4] * 1000, max_tokens=2))
    world.run()
    assert world.ranks[0].runner.tokens_of_steps[:2] == [2000, 2000]
    check_outputs(world, [group])


def test_children_are_forked_from_a_parent_that_has_gone_far_beyond_them() -> None:
    """A request of several sequences comes back: its leader recomputes all it has, the others share the prompt."""
    world = World(limits(num_blocks=300), window=3, eos_share=0.0)
    group = world.submit(make_request([1, 2, 3, 4] * 5, max_tokens=60, n=3, seed=4))
    for _ in range(50):
        world.step()
    world.new_epoch()
    world.run()
    check_outputs(world, [group])
    world.check_whole()
