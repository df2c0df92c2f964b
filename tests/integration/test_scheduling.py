"""The router's scheduler against the shard's engine and block pool, on random workloads and on chosen ones."""

import gc
import weakref
from collections.abc import Callable

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from pagewire.v1 import shard_pb2
from pagewire_router.errors import RequestTooLong
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import World, expected_output, make_request, output
from workloads import Abort, Draft, Steps, Submit, Workload, play, workloads


def limits(**changes: int) -> GroupLimits:
    values = {
        "num_blocks": 64,
        "block_size": 4,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
    } | changes
    return GroupLimits(**values)


def check_outputs(world: World, groups: list[SequenceGroup]) -> None:
    for group in groups:
        for sequence in group.sequences:
            expected = expected_output(
                group.request, sequence.index, world.scheduler.limits.max_model_len, world.eos_share
            )
            assert output(group, sequence.index) == expected


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_workloads_yield_every_token_once_and_leave_the_pool_whole(window: int, data: st.DataObject) -> None:
    play(data.draw(workloads(window)))


@settings(max_examples=80, deadline=None)
@given(workload=st.integers(1, 4).flatmap(workloads))
def test_ranks_that_learn_of_tokens_at_different_times_stay_identical(workload: Workload) -> None:
    play(workload, num_ranks=2)


@pytest.mark.parametrize(
    "reached",
    [
        lambda world: world.scheduler.num_preemptions > 0,
        lambda world: world.scheduler.tokens.prompt_cached > 0,
        lambda world: world.max_running > 3,
        lambda world: world.num_missed > 0,
        lambda world: world.grammars.num_prepared["a"] > 1,
        lambda world: world.num_resumed_prompts > 0,
    ],
)
def test_workloads_reach_what_is_rare(
    reached: Callable[[World], bool],
) -> None:
    """The simplest workload that does so is easily found, so that the tests above mean something."""
    few = settings(max_examples=2000, phases=[Phase.generate], database=None, deadline=None)
    find(workloads(2), lambda workload: reached(play(workload)), settings=few)


def test_no_token_is_computed_twice_without_preemption_or_void_lanes() -> None:
    world = World(limits(num_blocks=200), window=2, eos_share=0.0)
    groups = [world.submit(make_request([i % 5 + 1, 2, 3], max_tokens=9, seed=i)) for i in range(8)]
    world.run()
    check_outputs(world, groups)
    assert world.scheduler.num_preemptions == 0
    # Every known token but the last of each sequence is computed exactly once.
    assert world.ranks[0].runner.num_computed_total == sum(len(g.sequences[0].token_ids) - 1 for g in groups)


def test_a_cached_prefix_is_not_computed_again() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    prompt = [1, 2, 3, 4] * 10
    first = world.submit(make_request(prompt, max_tokens=4, seed=1))
    world.run()
    before = world.ranks[0].runner.num_computed_total
    second = world.submit(make_request([*prompt, 5], max_tokens=4, seed=2))
    world.run()
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens == 40
    assert world.ranks[0].runner.num_computed_total - before == 1 + 3
    check_outputs(world, [first, second])


def test_another_salt_shares_no_prefix() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    world.submit(make_request([1, 2, 3, 4] * 4, max_tokens=2, cache_salt="a"))
    world.run()
    other = world.submit(make_request([1, 2, 3, 4] * 4, max_tokens=2, cache_salt="b"))
    world.run()
    assert other.num_cached_tokens == 0


@pytest.mark.parametrize("window", [1, 2, 4])
def test_four_requests_share_a_pool_too_small_for_two(window: int) -> None:
    world = World(limits(num_blocks=9, max_model_len=36), window, eos_share=0.0)
    groups = [world.submit(make_request([i + 1] * 8, max_tokens=20, seed=i, arrival_s=i)) for i in range(4)]
    world.run()
    check_outputs(world, groups)
    assert world.scheduler.num_preemptions > 0
    world.check_whole()


def test_tokens_are_counted_by_what_was_done_for_them() -> None:
    """With one plan in flight and one sequence a request, to the token what the device computed."""
    world = World(limits(num_blocks=9, max_model_len=36), window=1, eos_share=0.0)
    groups = [world.submit(make_request([i + 1] * 8, max_tokens=20, seed=i, arrival_s=i)) for i in range(4)]
    world.run()
    counts = world.scheduler.tokens
    assert counts.prompt_computed + counts.prompt_cached == 4 * 8
    assert counts.generated == sum(group.num_output_tokens for group in groups)
    assert counts.recomputed > 0
    # Each admission samples a token of what it computes; every other token costs one more to compute.
    num_admissions = 4 + world.scheduler.num_preemptions
    num_computed = counts.prompt_computed + counts.recomputed + counts.generated - num_admissions
    assert num_computed == world.ranks[0].runner.num_computed_total


def test_children_of_a_fork_do_not_count_as_computed_again() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    world.submit(make_request([1, 2, 3, 4, 5, 1, 2], max_tokens=6, n=4, seed=3))
    world.run()
    counts = world.scheduler.tokens
    assert (counts.prompt_computed, counts.prompt_cached, counts.recomputed) == (7, 0, 0)
    assert counts.generated == 4 * 6


def test_the_first_plan_that_has_a_request_is_remembered() -> None:
    world = World(limits(num_blocks=9, max_model_len=36), window=2, eos_share=0.0)
    requests = [make_request([i + 1] * 8, max_tokens=20, seed=i, arrival_s=i) for i in range(4)]
    for request in requests:
        world.submit(request)
    world.step()
    first = [request.scheduled_s for request in requests]
    world.run()
    assert world.scheduler.num_preemptions > 0
    assert first[0] == requests[0].scheduled_s == 1.0
    assert None not in [request.scheduled_s for request in requests]


def test_parallel_samples_compute_their_prompt_once() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    group = world.submit(make_request([1, 2, 3, 4, 5, 1, 2], max_tokens=6, n=4, seed=3))
    world.run()
    check_outputs(world, [group])
    # The prompt once, its last token once more for each child, and five of six new tokens for each sequence.
    assert world.ranks[0].runner.num_computed_total == 7 + 3 + 4 * 5
    world.check_whole()


def test_the_copy_of_a_shared_block_has_room() -> None:
    """Forked within a block, both sequences write to it next, and one has to copy it: the pool is full without that."""
    own_limits = limits(num_blocks=6, block_size=2, max_num_seqs=4, max_num_batched_tokens=100, max_model_len=5)
    requests = [Submit([1], max_tokens=3), Submit([1], max_tokens=3), Submit([1, 1], max_tokens=3, n=2)]
    play(Workload(own_limits, window=2, eos_share=0.0, max_draft_tokens=0, max_grammar_delay=0, actions=requests))


def test_blocks_that_rejected_drafts_have_given_back_are_not_promised_twice() -> None:
    """Sequences shrink and grow again while others take what they have given back."""
    own_limits = limits(num_blocks=52, block_size=1, max_num_seqs=6, max_num_batched_tokens=8, max_model_len=25)
    submits = [Submit([1], 23, priority=1), Submit([1], 23, seed=39), Submit([1], 23, n=2, seed=42)]
    submits += [Submit([1], 23), Submit([1], 23, n=2)]
    late = [Submit([1], 23)] * 3
    actions = [*submits, Draft(3), Steps(4), *late, Abort(0), Steps(4), Abort(9)]
    play(Workload(own_limits, window=4, eos_share=0.0, max_draft_tokens=3, max_grammar_delay=0, actions=actions))


def test_a_request_that_is_preempted_by_the_plan_that_forks_it_costs_no_slot() -> None:
    """The children come and go within one plan, before they have a slot."""
    world = World(limits(num_blocks=8), window=1, eos_share=0.0)
    groups = [world.submit(make_request([i] * length, max_tokens=8, n=2)) for i, length in ((1, 8), (2, 10))]
    both = 0
    schedule = world.scheduler.schedule

    def watch(now: float) -> shard_pb2.StepPlan | None:
        nonlocal both
        plan = schedule(now)
        both += plan is not None and bool({f.child_seq_id for f in plan.forks} & set(plan.release_seq_ids))
        return plan

    world.scheduler.schedule = watch
    world.run()
    assert both > 0
    check_outputs(world, groups)
    world.check_whole()


def test_a_request_that_does_not_fit_is_passed_over_but_not_for_ever() -> None:
    world = World(limits(num_blocks=12, max_num_batched_tokens=32, max_model_len=48), window=2, eos_share=0.0)
    world.submit(make_request([1] * 20, max_tokens=8, arrival_s=0.0))
    world.step()
    big = world.submit(make_request([2] * 40, max_tokens=4, arrival_s=1.0))
    small = world.submit(make_request([3] * 4, max_tokens=2, arrival_s=2.0))
    while not small.is_finished:
        world.step()
    assert not big.is_running
    for i in range(400):
        world.submit(make_request([4, i % 5], max_tokens=8, arrival_s=3.0 + i))
        world.step()
        if big.is_finished:
            break
    assert big.is_finished


def test_priority_decides_who_is_admitted_first() -> None:
    world = World(limits(max_num_seqs=1), window=1, eos_share=0.0)
    world.submit(make_request([1], max_tokens=3, arrival_s=0.0))
    world.step()
    late_urgent = world.submit(make_request([2], max_tokens=3, arrival_s=2.0, priority=-1))
    early = world.submit(make_request([3], max_tokens=3, arrival_s=1.0))
    while not late_urgent.is_finished:
        world.step()
        assert not early.is_running
    world.run()
    assert early.is_finished


def test_the_nearer_deadline_is_admitted_first_and_a_missed_one_ends_the_request() -> None:
    world = World(limits(max_num_seqs=1), window=1, eos_share=0.0)
    world.submit(make_request([1], max_tokens=6, arrival_s=0.0))
    world.step()
    patient = world.submit(make_request([2], max_tokens=3, arrival_s=1.0))
    hurried = world.submit(make_request([3], max_tokens=3, arrival_s=2.0, deadline_s=40.0))
    hopeless = world.submit(make_request([4], max_tokens=3, arrival_s=2.0, deadline_s=4.0))
    while not hurried.is_finished:
        world.step()
        assert not patient.is_running
    world.run()
    assert hopeless.is_finished
    assert output(hopeless) == []
    check_outputs(world, [patient, hurried])


def test_a_long_prompt_does_not_stop_those_that_decode() -> None:
    world = World(limits(num_blocks=200, max_num_batched_tokens=8, max_model_len=400), window=1, eos_share=0.0)
    running = world.submit(make_request([1], max_tokens=30))
    world.step()
    world.submit(make_request([2] * 200, max_tokens=1))
    for i in range(10):
        world.step()
        assert len(output(running)) == i + 2


def test_an_aborted_request_gives_its_blocks_back_within_two_steps() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    group = world.submit(make_request([1] * 30, max_tokens=50))
    for _ in range(5):
        world.step()
    world.scheduler.end(group)
    while world.step():
        pass
    world.check_whole()


def test_requests_that_ended_early_are_not_kept_until_their_deadline() -> None:
    world = World(limits(), window=2, eos_share=0.0)
    groups = [world.submit(make_request([1, 2], max_tokens=1, deadline_s=1e9)) for _ in range(500)]
    ended = [weakref.ref(group) for group in groups]
    del groups
    world.run()
    for _ in range(200):
        world.scheduler.end(world.submit(make_request([1], max_tokens=1, deadline_s=1e9)))
    gc.collect()
    assert sum(ref() is not None for ref in ended) < 200


def test_a_new_epoch_resumes_every_request_where_it_was() -> None:
    world = World(limits(num_blocks=30), window=2, eos_share=0.0)
    groups = [world.submit(make_request([i + 1] * 6, max_tokens=12, seed=i, n=1 + i % 2)) for i in range(5)]
    for _ in range(6):
        world.step()
    world.new_epoch()
    world.run()
    check_outputs(world, groups)
    world.check_whole()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": 4000, "prompt": [1] * 300}, "blocks"),
        ({"n": 17, "max_tokens": 1, "prompt": [1]}, "17 sequences"),
    ],
)
def test_what_could_never_run_alone_is_refused_at_once(options: dict, named: str) -> None:
    world = World(limits(max_model_len=100_000), window=2, eos_share=0.0)
    with pytest.raises(RequestTooLong, match=named):
        world.submit(make_request(options.pop("prompt"), **options))
