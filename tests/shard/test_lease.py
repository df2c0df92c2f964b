"""The lease by itself, with a clock of the test's own."""

import pytest
from pagewire_shard.errors import LeaseHeld, LeaseLost, StaleEpoch
from pagewire_shard.service.lease import EpochId, Lease


class Clock:
    """Time stands still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(clock: Clock) -> Lease:
    return Lease(incarnation=7, term_s=10.0, clock=clock)


def test_terms_have_rising_counters(lease: Lease):
    first = lease.grant("a")
    lease.release(first)
    assert (first, lease.grant("b")) == (EpochId(7, 1), EpochId(7, 2))


def test_a_live_holder_is_named_with_the_time_that_remains(lease: Lease, clock: Clock):
    lease.renew(lease.grant("a"))
    clock.now_s += 2.5
    with pytest.raises(LeaseHeld) as refused:
        lease.grant("b")
    assert (refused.value.holder, refused.value.remaining_ms) == ("a", 7500)
    assert "'a'" in refused.value.message
    assert "7500 ms" in refused.value.message


def test_the_term_starts_with_the_first_renewal(lease: Lease, clock: Clock):
    epoch = lease.grant("a")
    clock.now_s += 1000
    assert (lease.holder, lease.remaining_s) == ("a", 10.0)
    lease.renew(epoch)
    clock.now_s += 10
    assert lease.holder is None


def test_a_lapsed_lease_is_free_and_can_be_renewed_until_it_is_taken(lease: Lease, clock: Clock):
    first = lease.grant("a")
    lease.renew(first)
    clock.now_s += 11
    lease.renew(first)
    assert lease.holder == "a"
    clock.now_s += 11
    lease.grant("b")
    with pytest.raises(StaleEpoch):
        lease.renew(first)


def test_force_takes_a_live_lease_and_fences_the_old_term(lease: Lease):
    first = lease.grant("a")
    second = lease.grant("b", force=True)
    lease.check(second)
    with pytest.raises(StaleEpoch):
        lease.check(first)


def test_a_late_release_leaves_the_next_holder_alone(lease: Lease):
    first = lease.grant("a")
    lease.grant("b", force=True)
    lease.release(first)
    assert lease.holder == "b"


def test_a_released_term_is_over(lease: Lease):
    epoch = lease.grant("a")
    lease.release(epoch)
    with pytest.raises(LeaseLost):
        lease.check(epoch)


def test_other_ranks_obey_the_highest_epoch_even_over_a_live_holder(lease: Lease):
    lease.obey("a", EpochId(99, 3))
    assert lease.obey("b", EpochId(99, 4)) == EpochId(99, 4)
    for stale in (EpochId(99, 3), EpochId(99, 4)):
        with pytest.raises(StaleEpoch):
            lease.obey("a", stale)
    assert lease.holder == "b"


def test_other_ranks_follow_a_restarted_first_rank_and_never_go_back(lease: Lease):
    lease.obey("a", EpochId(99, 8))
    lease.obey("a", EpochId(42, 1))
    with pytest.raises(StaleEpoch):
        lease.obey("b", EpochId(99, 9))
    assert lease.epoch == EpochId(42, 1)
