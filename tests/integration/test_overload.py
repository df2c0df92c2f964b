"""Goodput with more requests than a shard group can serve, in virtual time: what finishes by its deadline counts.

Capacity is what closed loops reach, in which nobody waits in vain. A scheduler that knew the length of every request
and the time of every step would serve as many in time however many more came. Ours has to estimate both, and is asked
for MIN_SHARE of it. One that does not look at deadlines loses most of it: see the test of that.
"""

import random
from collections.abc import Callable

import pytest
from overload_world import Cost, TimedGroup, arrivals, run_closed, run_open, timed_request
from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import GroupLimits

LIMITS = GroupLimits(num_blocks=4096, block_size=4, max_num_seqs=64, max_num_batched_tokens=256, max_model_len=128)
DEADLINE_S = 8.0
"""Several times what a request takes alone, so that there is time to wait, and a fifth of SECONDS."""
SECONDS = 40.0
MIN_SHARE = 0.8
"""Of the capacity, under any overload."""
MAX_IN_VAIN = (1 - MIN_SHARE) / 2
"""Of the tokens: those of requests that miss their deadline. The rest of the loss may come from idle slots."""


def saturating(rows: int, prompt: int) -> float:
    """A CPU: beyond 8 rows a further one adds little but time."""
    return 0.04 + 0.005 * rows + 0.001 * prompt


def flat(rows: int, prompt: int) -> float:
    """A GPU: rows are nearly free."""
    return 0.1 + 0.0002 * rows + 0.0001 * prompt


def uniform(arrival_s: float) -> Request:
    return timed_request(arrival_s, deadline_in_s=DEADLINE_S, max_tokens=24, eos=False)


def peak(cost: Cost, new_request: Callable[[float], Request] = uniform, eos_share: float = 0.0) -> float:
    """The most that closed loops of any size reach."""
    best = 0.0
    for num_clients in (16, 32, 64):
        group = TimedGroup(LIMITS, cost, eos_share=eos_share)
        run_closed(group, lambda arrival_s: without_deadline(new_request(arrival_s)), num_clients, 50.0)
        best = max(best, group.counts.goodput(10.0, 50.0))
    return best


def without_deadline(request: Request) -> Request:
    request.deadline_s = None
    return request


def offered(
    load: float, cost: Cost, new_request: Callable[[float], Request] = uniform, eos_share: float = 0.0
) -> tuple[TimedGroup, float]:
    """(group, its goodput as a share of the peak) after SECONDS at `load` times the peak."""
    best = peak(cost, new_request, eos_share)
    group = TimedGroup(LIMITS, cost, eos_share=eos_share)
    run_open([group], arrivals(load * best, new_request), SECONDS)
    return group, group.counts.goodput(DEADLINE_S, SECONDS) / best


@pytest.mark.parametrize("cost", [saturating, flat])
@pytest.mark.parametrize("load", [0.7, 2.0, 10.0])
def test_goodput_holds_under_overload(load: float, cost: Cost) -> None:
    group, share = offered(load, cost)
    assert group.counts.tokens_in_vain <= MAX_IN_VAIN * group.counts.tokens
    if load > 1:
        assert share >= MIN_SHARE
    else:
        assert group.counts.refused == group.counts.given_up == group.counts.expired == 0
        assert group.counts.tokens_in_vain == 0
        assert share >= 0.9 * load, "all were served but those that still run"


@pytest.mark.parametrize("load", [2.0, 10.0])
def test_goodput_would_not_hold_if_deadlines_were_not_looked_at(load: float) -> None:
    """First come, first served: soon everybody has waited for too long before it is their turn."""
    best = peak(saturating)
    group = TimedGroup(LIMITS, saturating)
    run_open([group], arrivals(load * best, lambda arrival_s: without_deadline(uniform(arrival_s))), SECONDS)
    finished = zip(group.ended, group.counts.in_time, strict=True)
    in_time = [at_s for ended, at_s in finished if DEADLINE_S <= at_s <= ended.request.arrival_s + DEADLINE_S]
    assert len(in_time) / (SECONDS - DEADLINE_S) < best * MIN_SHARE / 2


@pytest.mark.parametrize("load", [2.0, 10.0])
def test_goodput_holds_with_mixed_deadlines_lengths_and_priorities(load: float) -> None:
    rng = random.Random(7)

    def mixed(arrival_s: float) -> Request:
        return timed_request(
            arrival_s,
            deadline_in_s=rng.choice([4.0, 8.0, 20.0]),
            max_tokens=rng.choice([4, 16, 48]),
            num_prompt=rng.choice([4, 40]),
            priority=rng.choice([0, 0, 1]),
            eos=False,
        )

    group, share = offered(load, saturating, mixed)
    assert share >= MIN_SHARE
    assert group.counts.tokens_in_vain <= MAX_IN_VAIN * group.counts.tokens


@pytest.mark.parametrize("load", [2.0, 10.0])
def test_goodput_holds_when_requests_stop_long_before_max_tokens(load: float) -> None:
    def chatty(arrival_s: float) -> Request:
        return timed_request(arrival_s, deadline_in_s=DEADLINE_S, max_tokens=120)

    _, share = offered(load, saturating, chatty, eos_share=0.08)
    assert share >= MIN_SHARE


def test_requests_without_a_deadline_are_neither_refused_nor_given_up() -> None:
    group, share = offered(3.0, saturating, lambda s: without_deadline(uniform(s)))
    assert share >= 0.9, "nothing has to be estimated"
    assert group.counts.refused == group.counts.given_up == 0


def test_requests_without_a_deadline_get_their_turn_beside_those_that_have_one() -> None:
    group = TimedGroup(LIMITS, saturating)
    every_tenth = iter(range(10**9))

    def some(arrival_s: float) -> Request:
        request = uniform(arrival_s)
        return without_deadline(request) if next(every_tenth) % 10 == 0 else request

    run_open([group], arrivals(20.0, some), 100.0)
    ended = [g for g in group.ended if g.request.deadline_s is None]
    assert any(g.request.arrival_s < 30.0 for g in ended)
    assert all(not g.unfinished() for g in group.ended)


def test_a_burst_after_idle_is_not_refused_on_old_figures() -> None:
    speed = [4.0]
    group = TimedGroup(LIMITS, lambda rows, prompt: speed[0] * saturating(rows, prompt))
    run_open([group], arrivals(20.0, uniform), 10.0)
    assert group.counts.refused, "the slow group was overloaded"
    group.step_until(60.0)
    speed[0], group.counts.refused = 1.0, 0
    done = len(group.counts.in_time)
    run_open([group], (uniform(60.0) for _ in range(30)), 80.0)
    assert group.counts.refused == 0
    assert len(group.counts.in_time) - done == 30


def test_a_group_that_has_not_run_a_step_refuses_nothing() -> None:
    group = TimedGroup(LIMITS, saturating)
    run_open([group], (uniform(0.0) for _ in range(500)), 30.0)
    assert group.counts.refused == 0
    # All are due at once, and nothing is known yet of when they could end: it costs less than half the capacity.
    assert group.counts.goodput(0.0, DEADLINE_S) >= 0.5 * peak(saturating)


def test_several_groups_share_the_load() -> None:
    slow, fast = TimedGroup(LIMITS, lambda r, p: 2 * saturating(r, p)), TimedGroup(LIMITS, saturating)
    best = 1.5 * peak(saturating)
    run_open([slow, fast], arrivals(4 * best, uniform), SECONDS)
    goodput = sum(group.counts.goodput(DEADLINE_S, SECONDS) for group in (slow, fast))
    assert goodput >= MIN_SHARE * best


def test_a_request_that_could_run_at_once_is_not_refused_however_near_its_deadline_is() -> None:
    group = TimedGroup(LIMITS, saturating)
    run_open([group], (uniform(0.0) for _ in range(4)), 5.0)
    request = timed_request(5.0, deadline_in_s=0.2, max_tokens=100, eos=False)
    run_open([group], iter([request]), 6.0)
    assert group.counts.refused == group.counts.given_up == 0
    assert group.counts.expired == 1
    assert group.counts.tokens_in_vain > 0


def test_what_cannot_finish_in_time_any_more_is_given_up_before_its_deadline() -> None:
    """A priority that is always served first leaves the others no time."""
    group = TimedGroup(LIMITS, saturating)
    run_open([group], arrivals(30.0, lambda s: timed_request(s, deadline_in_s=30.0, max_tokens=48, eos=False)), 4.0)
    late = timed_request(4.0, deadline_in_s=9.0, max_tokens=48, eos=False, priority=1)
    waiting = group.submit(late)
    run_open(
        [group], arrivals(30.0, lambda s: timed_request(s, deadline_in_s=30.0, max_tokens=48, eos=False), 4.0), 12.9
    )
    assert waiting.is_finished
    assert group.counts.given_up >= 1
    assert waiting.num_output_tokens == 0
