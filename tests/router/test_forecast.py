"""The forecast of when requests finish: pace of steps, output lengths, requests ahead; and the retry delay."""

import random

import pytest
from pagewire_router.errors import QueueFull
from pagewire_router.groups.placement import place_in_time
from pagewire_router.groups.retry_delay import MAX_S, retry_delay_s
from pagewire_router.scheduling.forecast import Estimate
from pagewire_router.scheduling.output_lengths import MEMORY_S, OutputLengths
from pagewire_router.scheduling.pace import IDLE_S, Pace
from pagewire_router.scheduling.prefix_index import PrefixIndex
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.scheduling.waiting_queue import WaitingQueue
from scheduling_world import make_request


def fed(pace: Pace, num_steps: int, *, noise: float = 0.0, scale: float = 1.0, start_s: float = 0.0) -> float:
    """Steps of 10 ms, 0.2 ms for each row and 0.05 ms for each prompt token. Returns when the last one ended."""
    rng, now = random.Random(3), start_s
    for _ in range(num_steps):
        rows, prompt = rng.randrange(1, 100), rng.choice([0, 0, rng.randrange(200)])
        seconds = scale * (0.010 + 0.0002 * rows + 0.00005 * prompt) * rng.uniform(1 - noise, 1 + noise)
        now += seconds
        pace.add(now, seconds, rows, prompt)
    return now


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_pace_is_learned_from_a_few_hundred_steps(noise: float) -> None:
    pace = Pace()
    fed(pace, 400, noise=noise)
    for rows, prompt in [(1, 0), (50, 0), (100, 0), (50, 200)]:
        assert pace.step_s(rows, prompt) == pytest.approx(0.010 + 0.0002 * rows + 0.00005 * prompt, rel=0.2)


def test_a_pace_follows_a_device_that_becomes_slower() -> None:
    pace = Pace()
    now = fed(pace, 400)
    fed(pace, 600, scale=3.0, start_s=now)
    assert pace.step_s(50) == pytest.approx(0.060, rel=0.1)


def test_one_stall_hardly_changes_a_pace() -> None:
    pace = Pace()
    now = fed(pace, 400)
    pace.add(now + 4.0, 4.0, 50, 0)
    assert pace.step_s(50) == pytest.approx(0.020, rel=0.5)


def test_a_pace_is_forgotten_when_nothing_runs_for_a_while() -> None:
    pace = Pace()
    now = fed(pace, 50)
    assert not pace.is_stale(now + IDLE_S / 2)
    assert pace.is_stale(now + IDLE_S + 1)
    pace.add(now + IDLE_S + 1, 0.5, 10, 0)
    assert pace.step_s(10) == pytest.approx(0.5)
    assert not pace.is_settled


def test_what_was_measured_of_one_batch_alone_counts_as_growing_with_it() -> None:
    pace = Pace()
    pace.add(0.1, 0.1, 10, 0)
    assert pace.step_s(20) == pytest.approx(0.2)
    assert pace.worthwhile_rows == 0


def test_lengths_are_learned_by_what_was_asked_for() -> None:
    lengths = OutputLengths()
    assert lengths.expected(0.0, 500) == 1.0, "nothing is refused for a length that was never seen"
    for _ in range(200):
        lengths.add(0.0, 500, 40)
        lengths.add(0.0, 2000, 300)
    assert lengths.expected(1.0, 400) == pytest.approx(40)
    assert lengths.expected(1.0, 2000) == pytest.approx(300)
    assert lengths.expected(1.0, 100_000) == pytest.approx(300), "the longest of those with fewer stands in"
    assert lengths.expected(1.0 + 2 * MEMORY_S, 400) == 1.0


def test_the_queue_knows_what_is_ahead_of_a_newcomer() -> None:
    queue, groups = WaitingQueue(), []
    for i in range(100):
        group = SequenceGroup(make_request([1], arrival_s=float(i), deadline_s=i + 8.0, max_tokens=4), 64)
        group.expected_tokens = 4.0
        groups.append(group)
        queue.push(group)
    request = make_request([1], arrival_s=20.0, deadline_s=58.25)
    assert queue.tokens_ahead(request) == 4.0 * 51
    urgent = make_request([1], arrival_s=20.0, deadline_s=58.25, priority=-1)
    assert queue.tokens_ahead(urgent) == 0
    for group in groups[:50]:
        queue.remove(group)
    assert queue.tokens_ahead(request) == 4.0
    assert queue.num_expected_tokens == 200
    while queue.pop():
        pass
    assert (queue.num_expected_tokens, queue.num_sequences, queue.num_tokens) == (0, 0, 0)


def test_the_delay_is_the_wait_with_a_bound_and_never_less() -> None:
    delays = [retry_delay_s(10.0) for _ in range(50)]
    assert min(delays) >= 10.0
    assert max(delays) - min(delays) > 1.0, "those refused together do not come back together"
    assert MAX_S <= retry_delay_s(1e9) <= 1.5 * MAX_S
    assert retry_delay_s(0.0) > 0.0


class Group:
    """A shard group with a known estimate."""

    block_size, longest_short = 4, 0

    def __init__(self, load: int, estimate: Estimate | None) -> None:
        self.load, self.prefixes, self._estimate = load, PrefixIndex(), estimate

    def estimate(self, request: object, now: float) -> Estimate | None:
        return self._estimate


def test_a_request_goes_where_it_finishes_in_time_or_is_refused() -> None:
    full, free, unknown = Group(1, Estimate(9.0, 1.0)), Group(2, Estimate(1.0, 1.0)), Group(3, None)
    request = make_request([1, 2, 3], deadline_s=8.0)
    assert place_in_time(request, [full, free], 0.0) is free
    assert place_in_time(request, [full, unknown], 0.0) is unknown
    assert place_in_time(make_request([1, 2, 3]), [full, free], 0.0) is full, "without a deadline it may wait"
    with pytest.raises(QueueFull) as caught:
        place_in_time(request, [full, free], 6.0)
    assert caught.value.retry_after_s is not None
    assert 1.0 <= caught.value.retry_after_s <= 1.5
