"""Digests of a group's ranks: all are compared, and no step is remembered that all have answered."""

import pytest
from pagewire_router.groups.digests import Digests
from pagewire_router.scheduling.sequence import ProtocolError


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ranks_that_agree_leave_nothing_behind(num_ranks: int) -> None:
    digests = Digests(num_ranks)
    for step in range(1, 6):
        for _ in range(num_ranks):
            digests.check(step, 7 * step)
    assert digests.num_mismatches == 0
    assert not digests._open


@pytest.mark.parametrize(("num_ranks", "odd_one"), [(n, i) for n in (2, 3, 4) for i in range(1, n)])
def test_the_digest_of_every_rank_counts(num_ranks: int, odd_one: int) -> None:
    digests = Digests(num_ranks)
    for _ in range(odd_one):
        digests.check(1, 7)
    with pytest.raises(ProtocolError, match="disagree after step 1"):
        digests.check(1, 8)
    assert digests.num_mismatches == 1


def test_two_pairs_that_agree_among_themselves_differ() -> None:
    digests = Digests(4)
    digests.check(1, 1)
    digests.check(1, 1)
    with pytest.raises(ProtocolError):
        digests.check(1, 2)


def test_ranks_may_be_steps_apart() -> None:
    digests = Digests(3)
    for step in (1, 2, 3):
        digests.check(step, step)
    for step in (1, 2):
        digests.check(step, step)
        digests.check(step, step)
    digests.check(3, 3)
    with pytest.raises(ProtocolError, match="step 3"):
        digests.check(3, 4)


def test_a_new_epoch_begins_with_no_digests() -> None:
    digests = Digests(2)
    digests.check(1, 1)
    digests.clear()
    digests.check(1, 2)
    digests.check(1, 2)
    assert digests.num_mismatches == 0
