"""The scheduler with a pipeline of two stages, on random workloads and on chosen ones."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire_common.cache_groups import PLAIN
from pagewire_router.scheduling.block_ledger import GroupLimits
from scheduling_world import World, make_request
from stage_world import StageWorld
from workloads import CACHE_GROUPS, Workload, play, workloads

STAGES = 2
LIMITS = GroupLimits(
    num_blocks=400, block_size=4, max_num_seqs=64, max_num_batched_tokens=64, max_model_len=128, num_stages=STAGES
)


def staged(workload: Workload) -> Workload:
    return replace(workload, limits=replace(workload.limits, num_stages=STAGES))


@pytest.mark.parametrize("groups", [st.just(PLAIN), CACHE_GROUPS], ids=["one table", "cache groups"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_workloads_yield_every_token_once_and_no_stage_waits_for_one(
    groups: st.SearchStrategy, data: st.DataObject
) -> None:
    window = data.draw(st.integers(1, STAGES + 2))
    play(staged(data.draw(workloads(window, max_drafts=0, groups=groups))), num_ranks=2, make_world=StageWorld)


@settings(max_examples=15, deadline=None)
@given(workload=st.integers(1, 4).flatmap(lambda window: workloads(window, max_drafts=0, has_states=True)))
def test_stages_with_recurrent_states_stay_identical(workload: Workload) -> None:
    play(staged(workload), num_ranks=2, make_world=StageWorld)


def plans_in_flight(world: World, num_steps: int) -> list[list[int]]:
    """After each step the rows of the plans in flight, oldest first."""
    seen = []
    for _ in range(num_steps):
        world.step()
        seen.append([len(plan.sequences) for plan in world.scheduler._inflight])
    return seen


@pytest.mark.parametrize("num_requests", [8, 11])
def test_decodes_are_shared_out_evenly_among_as_many_plans_as_stages(num_requests: int) -> None:
    world = World(LIMITS, window=STAGES + 1, eos_share=0.0)
    for i in range(num_requests):
        world.submit(make_request([1, 2, 3, i % 5], max_tokens=60, seed=i))
    steady = plans_in_flight(world, 40)[10:]
    share = -(-num_requests // STAGES)
    # One result has been taken in, and the plan that follows it is yet to be made.
    assert {tuple(sorted(rows)) for rows in steady} <= {(share,), (num_requests - share,)}


def test_one_plan_at_a_time_decodes_all_requests() -> None:
    world = World(LIMITS, window=1, eos_share=0.0)
    for i in range(8):
        world.submit(make_request([1, 2, 3, i % 5], max_tokens=20, seed=i))
    num_steps = 0
    while world.step():
        num_steps += 1
    assert num_steps <= 20 + 1


def test_requests_that_come_late_join_the_shares() -> None:
    world = World(LIMITS, window=STAGES + 1, eos_share=0.0)
    for i in range(8):
        world.submit(make_request([1, 2, 3], max_tokens=100, seed=i))
        world.step()
        world.step()
    steady = plans_in_flight(world, 30)[10:]
    assert {rows for plans in steady for rows in plans} == {4}


def test_chunks_of_a_long_prompt_are_in_flight_together() -> None:
    limits = replace(LIMITS, max_num_batched_tokens=16)
    world = World(limits, window=STAGES + 1, eos_share=0.0)
    world.submit(make_request([1, 2, 3, 4] * 20, max_tokens=20))
    world.step()
    assert [sum(plan.num_scheduled_tokens) for plan in world.scheduler._inflight] == [16, 16]
    world.run()
    world.check_whole()


def test_decodes_go_on_while_prompts_fill_the_plans() -> None:
    world = World(replace(LIMITS, max_num_batched_tokens=16, num_blocks=2000), window=STAGES + 1, eos_share=0.0)
    group = world.submit(make_request([1, 2, 3], max_tokens=100, seed=1))
    for i in range(40):
        world.submit(make_request([i % 5, 2, 3, 4] * 16, max_tokens=1, seed=i, arrival_s=1.0, cache_salt=str(i)))
    for _ in range(40):
        world.step()
    assert world.scheduler.num_waiting, "prompts are still waiting"
    assert group.num_output_tokens >= 40 // (STAGES + 2)
