"""The lease by itself, with a clock of the test's own."""

import random

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


def test_a_lease_that_must_have_been_free_for_a_while_is_given_first_to_whoever_does_not_mind(
    lease: Lease, clock: Clock
):
    with pytest.raises(LeaseHeld) as refused:
        lease.grant("patient", min_free_s=0.7)
    assert (refused.value.holder, refused.value.remaining_ms) == ("", 700)
    clock.now_s += 0.7
    first = lease.grant("patient", min_free_s=0.7)
    lease.renew(first)
    clock.now_s += 5
    lease.release(first)
    clock.now_s += 0.6
    with pytest.raises(LeaseHeld):
        lease.grant("other", min_free_s=0.7)
    assert lease.grant("in need", min_free_s=0.0).counter == 2


def test_a_lapsed_lease_is_free_from_the_end_of_its_term(lease: Lease, clock: Clock):
    lease.renew(lease.grant("a"))
    clock.now_s += 10.5
    with pytest.raises(LeaseHeld):
        lease.grant("b", min_free_s=0.7)
    clock.now_s += 0.3
    lease.grant("b", min_free_s=0.7)


def test_routers_that_were_refused_wait_until_they_ask_no_more(lease: Lease, clock: Clock):
    lease.renew(lease.grant("a"))
    for name in ("c", "b", "c"):
        with pytest.raises(LeaseHeld):
            lease.grant(name)
    assert lease.waiting == ["b", "c"]
    clock.now_s += 2
    with pytest.raises(LeaseHeld):
        lease.grant("c")
    clock.now_s += 2
    assert lease.waiting == ["c"]
    clock.now_s += 10
    for number in range(1000):
        lease.grant("d", force=True)
        with pytest.raises(LeaseHeld):
            lease.grant(f"stranger {number}")
    assert len(lease.waiting) <= 64


class Network:
    """Two routers that drive a group of two shards, through messages that come late, or twice, or not at all."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.ranks = [Lease(incarnation=7, term_s=3.0, clock=self.clock), Lease(8, 3.0, self.clock)]
        self.held: dict[str, EpochId | None] = {"a": None, "b": None}
        """What each router believes that it holds."""
        self.in_flight: list[tuple[str, EpochId, str]] = []
        """Messages on their way: router, epoch, kind."""
        self.executed: list[list[EpochId]] = [[], []]
        self.num_takeovers = 0
        self.last_driver: str | None = None

    def step(self) -> None:
        router = self.rng.choice("ab")
        self.clock.now_s += self.rng.choice((0.0, 0.05, 0.4, 1.0, 3.5))
        epoch = self.held[router]
        match self.rng.randrange(8):
            case 0 | 1 | 2:
                self._ask(router)
            case 3 | 4 if epoch is not None:
                self.in_flight.append((router, epoch, self.rng.choice(("plan", "plan", "renew"))))
            case 5 if epoch is not None:
                self.in_flight.append((router, epoch, "goodbye"))
                self.held[router] = None
            case 6:
                self.held[router] = None  # The router is killed: its stream breaks.
                if epoch is not None:
                    for rank in self.ranks:
                        rank.release(epoch)
            case _:
                self._deliver()

    def _ask(self, router: str) -> None:
        try:
            epoch = self.ranks[0].grant(router, force=self.rng.random() < 0.1, min_free_s=self.rng.choice((0.0, 0.7)))
        except LeaseHeld:
            return
        self.num_takeovers += router != self.last_driver
        self.last_driver = router
        self.held[router] = epoch
        self.ranks[0].renew(epoch)
        # The router may be stopped between the ranks, and go on when another one drives them.
        if self.rng.random() < 0.8:
            self._obey(router, epoch)
        else:
            self.in_flight.append((router, epoch, "obey"))

    def _obey(self, router: str, epoch: EpochId) -> None:
        try:
            self.ranks[1].obey(router, epoch)
            self.ranks[1].renew(epoch)
        except StaleEpoch:
            self.held[router] = None if self.held[router] == epoch else self.held[router]

    def _deliver(self) -> None:
        if not self.in_flight:
            return
        message = self.rng.choice(self.in_flight)
        if self.rng.random() < 0.8:
            self.in_flight.remove(message)
        router, epoch, kind = message
        if kind == "obey":
            self._obey(router, epoch)
            return
        for index, rank in enumerate(self.ranks):
            try:
                if kind == "goodbye":
                    rank.release(epoch)
                elif kind == "renew":
                    rank.renew(epoch)
                else:
                    rank.check(epoch)
                    self.executed[index].append(epoch)
            except (StaleEpoch, LeaseLost):
                if self.held[router] == epoch:
                    self.held[router] = None

    def check(self) -> None:
        """On each shard terms follow one another: once a later one has run a plan, no earlier one does."""
        for executed in self.executed:
            assert executed == sorted(executed, key=lambda epoch: epoch.counter)
        current = {rank.epoch for rank in self.ranks if rank.holder is not None}
        believers = [
            router for router, epoch in self.held.items() if epoch is not None and epoch == self.ranks[0].epoch
        ]
        assert len(believers) <= 1
        assert all(epoch.counter <= self.ranks[0].epoch.counter for epoch in current)


@pytest.mark.parametrize("num_takeovers", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_exactly_one_router_drives_through_random_takeovers(num_takeovers: int):
    num_seen = num_executed = 0
    seed = 0
    while num_seen < num_takeovers:
        network = Network(seed)
        for _ in range(400):
            network.step()
            network.check()
        num_seen += network.num_takeovers
        num_executed += len(network.executed[0])
        seed += 1
    assert num_executed > num_takeovers / 10
