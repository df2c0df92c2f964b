"""The measured budget of writes, driven by a simulated event loop whose costs the test sets."""

import math
import random

import pytest
from pagewire_router.output.write_budget import MAX_SHARE, MIN_WRITES_PER_S, TARGET_BUSY, WriteBudget

WAKES = 16


class SimulatedLoop:
    """An event loop's thread that has steps to handle and streams to write, on a machine that gives it some of a core.

    The streams are written as a pacer would: a burst every interval, which follows the budget.
    """

    def __init__(self, *, streams=256, cost_s=35e-6, other=0.1, served=1.0, max_interval_s=0.05):
        self.streams, self.cost_s, self.other, self.served = streams, cost_s, other, served
        self.max_interval_s = max_interval_s
        self.now_s = self.cpu_s = 0.0
        self.noise = random.Random(1)
        self.jitter = 0.0
        self.stall_s = 0.0
        """Added to one turn of every burst."""
        self.budget = WriteBudget(lambda: self.now_s, lambda: self.cpu_s)
        self.rates = []
        """Allowed writes per second after each burst."""

    @property
    def interval_s(self):
        return min(self.max_interval_s, self.streams / self.budget.writes_per_s)

    def compute(self, seconds):
        self.cpu_s += seconds
        self.now_s += seconds / self.served

    def run(self, seconds):
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.burst()
        return self

    def burst(self):
        began_s, left, woken = self.now_s, self.streams, 0
        stalled_turn = self.noise.randrange(-(-self.streams // WAKES))
        while left or woken:
            self.budget.on_turn(woken)
            woken = min(WAKES, left)
            left -= woken
            for _ in range(woken):
                self.compute(self.cost_s * math.exp(self.noise.gauss(0.0, self.jitter)))
            if self.stall_s and left // WAKES == stalled_turn:
                self.compute(self.stall_s)
        self.rates.append(self.budget.writes_per_s)
        interval_s = self.interval_s
        self.compute(self.other * interval_s)
        self.now_s = max(self.now_s, began_s + interval_s)


def settled(loop):
    """The allowed rates of the last second."""
    first = len(loop.rates)
    loop.run(1.0)
    return loop.rates[first:]


def test_little_is_allowed_until_something_is_measured():
    assert WriteBudget(lambda: 0.0, lambda: 0.0).writes_per_s == MIN_WRITES_PER_S


@pytest.mark.parametrize("cost_us", [10, 35, 60])
def test_a_machine_with_free_cores_writes_as_often_as_its_measured_cost_allows(cost_us):
    loop = SimulatedLoop(cost_s=cost_us * 1e-6, other=0.2).run(5.0)
    assert loop.budget.cost_s == pytest.approx(cost_us * 1e-6, rel=0.05)
    assert loop.budget.writes_per_s == pytest.approx(MAX_SHARE / (cost_us * 1e-6), rel=0.1)


def test_256_streams_are_written_within_25_ms_and_64_within_a_step_of_a_fast_model():
    assert SimulatedLoop(streams=256).run(5.0).interval_s < 0.025
    assert SimulatedLoop(streams=64).run(5.0).interval_s < 0.007


def test_a_change_of_the_machine_is_followed_within_three_seconds():
    loop = SimulatedLoop(cost_s=20e-6, other=0.2).run(5.0)
    for cost_us in (60, 20):
        loop.cost_s = cost_us * 1e-6
        loop.run(3.0)
        assert loop.budget.writes_per_s == pytest.approx(MAX_SHARE / loop.cost_s, rel=0.15)


def test_a_loop_that_has_plans_to_handle_leaves_them_their_time():
    loop = SimulatedLoop(cost_s=40e-6, other=0.5).run(8.0)
    assert loop.budget.busy == pytest.approx(TARGET_BUSY, abs=0.03)
    loop.other = 0.95
    loop.run(8.0)
    assert loop.budget.writes_per_s == pytest.approx(MIN_WRITES_PER_S, rel=0.05)


def test_where_cores_are_scarce_no_more_is_written_than_always():
    loop = SimulatedLoop(cost_s=35e-6, served=0.5).run(5.0)
    assert loop.budget.writes_per_s == pytest.approx(MIN_WRITES_PER_S, rel=0.05)
    assert loop.interval_s == loop.max_interval_s
    loop.served = 1.0
    loop.run(5.0)
    assert loop.budget.writes_per_s > 5 * MIN_WRITES_PER_S


@pytest.mark.parametrize("other", [0.1, 0.5, 0.7])
def test_a_steady_load_has_a_steady_rate(other):
    """Also where the noise of single writes is large, and where plans are handled between them."""
    loop = SimulatedLoop(other=other)
    loop.jitter, loop.stall_s = 0.5, 0.002
    loop.run(8.0)
    rates = settled(loop)
    assert max(rates) / min(rates) < 1.15


def test_what_the_measured_cost_leaves_out_does_not_make_the_rate_swing():
    """The median counts a rare expensive write as a cheap one: the busy time that is left shows it."""
    loop = SimulatedLoop(cost_s=20e-6, other=0.55)
    loop.jitter = 1.2
    loop.run(10.0)
    rates = settled(loop)
    assert max(rates) / min(rates) < 1.2
    assert loop.budget.busy < TARGET_BUSY + 0.05


def test_one_stall_does_not_change_the_pace():
    loop = SimulatedLoop(other=0.2).run(5.0)
    before = loop.budget.writes_per_s
    loop.compute(0.5)
    lowest = min(settled(loop))
    assert lowest > 0.5 * before
    loop.run(4.0)
    assert loop.budget.writes_per_s == pytest.approx(before, rel=0.1)


def test_after_a_pause_the_measurement_goes_on_from_what_it_knew():
    loop = SimulatedLoop(other=0.2).run(5.0)
    before = loop.budget.writes_per_s
    loop.now_s += 3600.0
    loop.run(0.3)
    assert loop.budget.writes_per_s > 0.5 * before
