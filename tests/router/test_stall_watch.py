"""The times after which a rank counts as hung, on a clock that the test sets."""

import pytest
from pagewire_common.patience import NOTICE_S
from pagewire_router.groups.stall_watch import MAX_GROWTH, PLAN_PATIENCE, StallWatch


def checks(watch, *, until_s, oldest_plan_s=None, from_s=0.0):
    """The first time at which a rank hangs, looking every quarter of a second; None: never."""
    now_s = from_s
    while now_s < until_s:
        now_s += 0.25
        stall = watch.check(now_s, oldest_plan_s)
        if stall is not None:
            return now_s, stall.rank
    return None


@pytest.fixture
def watch():
    watch = StallWatch(2, 10.0)
    watch.start(7, 0.0)
    return watch


def test_a_rank_of_which_nothing_is_heard_hangs(watch):
    watch.heard_s = [8.0, 3.0]
    assert checks(watch, until_s=30.0) == (13.25, 1)


def test_a_plan_without_a_result_is_given_longer_while_heartbeats_come(watch):
    for second in range(1, 100):
        watch.heard_s = [float(second)] * 2
        stall = watch.check(float(second), oldest_plan_s=5.0)
        assert (stall is not None) == (second > 5 + PLAN_PATIENCE * 10)


def test_results_that_come_are_progress_however_old_the_oldest_plan_is(watch):
    for second in range(1, 100):
        watch.heard_s, watch.result_s = [float(second)] * 2, float(second)
        assert watch.check(float(second), oldest_plan_s=0.0) is None


def test_a_router_that_stood_still_first_reads_what_has_come(watch):
    assert watch.check(0.25, None) is None
    assert watch.check(100.0, 0.2) is None
    assert checks(watch, from_s=100.0, until_s=200.0) == (110.0, 0)


def test_a_shard_that_comes_back_without_a_new_start_was_slow_and_may_take_longer(watch):
    allowed = []
    for _ in range(4):
        watch.patience.give_up(7)
        assert watch.start(7, 0.0)
        allowed.append(watch.patience.allowed_s)
    assert allowed == [20.0, 40.0, 40.0, 40.0]
    assert max(allowed) == MAX_GROWTH * 10.0
    watch.patience.give_up(7)
    assert not watch.start(8, 0.0), "it was started again"
    assert watch.patience.allowed_s == 10.0


def test_a_stream_that_broke_for_other_reasons_changes_nothing(watch):
    assert not watch.start(7, 50.0)
    assert watch.patience.allowed_s == 10.0


def test_a_group_that_can_plan_nothing_though_requests_wait_hangs(watch):
    watch.heard_s = [1000.0] * 2
    assert watch.check(0.25, None, has_work=False) is None
    stalls = [watch.check(0.25 * tick, None, has_work=True) for tick in range(2, 60)]
    assert stalls[39] is None, "10 s have not passed"
    assert stalls[40] is not None
    assert stalls[40].rank is None
    assert "no step could be planned" in str(stalls[40])


def test_a_plan_under_way_or_nothing_to_do_is_no_lack_of_room(watch):
    for tick in range(200):
        now_s = 0.25 * tick
        watch.heard_s, watch.result_s = [now_s] * 2, now_s
        assert watch.check(now_s, now_s if tick % 3 else None, has_work=tick % 3 == 1) is None
        assert watch.stuck(now_s) is None


def test_a_group_is_stuck_long_before_it_is_given_up(watch):
    noticed_s = given_up_s = None
    for tick in range(1, 60):
        now_s = 0.25 * tick
        if watch.check(now_s, None) and given_up_s is None:
            given_up_s = now_s
        if watch.stuck(now_s) and noticed_s is None:
            noticed_s = now_s
    assert noticed_s is not None
    assert NOTICE_S < noticed_s < 5.0
    assert given_up_s == 10.25
