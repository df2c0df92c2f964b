"""A group that says nothing is noticed within a second, and one that was only slow is allowed more."""

from pagewire_router.groups.silence_watch import ALLOWED_S, CHECK_S, MAX_ALLOWED_S, SilenceWatch


def watch(num_ranks: int = 2) -> SilenceWatch:
    watch = SilenceWatch(num_ranks)
    watch.start(1, 100.0)
    watch.has_beats = True
    return watch


def check_from(watch: SilenceWatch, start_s: float, end_s: float) -> float | None:
    """Checks in time; the time at which it was silent."""
    now_s = start_s
    while now_s < end_s:
        if watch.check(now_s) is not None:
            return now_s
        now_s += CHECK_S
    return None


def test_a_rank_that_speaks_is_not_silent():
    it = watch()
    for tenth in range(100):
        now_s = 100 + tenth * CHECK_S
        it.heard_s = [now_s, now_s - 0.3]
        assert it.check(now_s) is None


def test_a_silent_rank_is_noticed_within_a_second():
    it = watch()
    it.heard_s[0] = 200.0
    noticed_s = check_from(it, 100.0, 110)
    assert noticed_s is not None
    assert ALLOWED_S < noticed_s - 100.0 < 1.0
    silence = it.check(noticed_s + CHECK_S)
    assert silence is not None
    assert silence.rank == 1


def test_a_router_that_stood_still_reads_first():
    it = watch()
    assert check_from(it, 100.1, 100.3) is None
    assert it.check(109.0) is None
    assert check_from(it, 109.1, 120) is not None


def test_shards_that_send_no_beats_are_not_watched():
    it = watch()
    it.has_beats = False
    assert check_from(it, 100.0, 200.0) is None


def test_processes_that_were_only_slow_are_allowed_twice_the_time_each_time():
    it = watch()
    allowed = []
    for _ in range(6):
        it.patience.give_up(1)
        it.start(1, 200.0)
        allowed.append(it.patience.allowed_s)
    assert allowed[0] == 2 * ALLOWED_S
    assert allowed[-1] == MAX_ALLOWED_S
    it.patience.give_up(1)
    it.start(2, 300.0)
    assert it.patience.allowed_s == ALLOWED_S, "another process"
