"""Chooses the shard group of a request: the one with most of its prompt cached, among those that are not much busier.

A request that would miss its deadline there goes to another group, or is refused.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from pagewire_router.errors import QueueFull
from pagewire_router.groups.retry_delay import retry_delay_s
from pagewire_router.request import Request
from pagewire_router.scheduling.forecast import Estimate
from pagewire_router.scheduling.prefix_index import PrefixIndex

LOAD_WINDOW_SEQUENCES = 16
"""A group with so many more sequences than the least busy one is not chosen for its cache: the cost of waiting for a
slot in the batch outgrows that of computing a prefix again."""


class Candidate(Protocol):
    """What placement reads of a shard group."""

    @property
    def prefixes(self) -> PrefixIndex:
        """What the group's prefix cache holds."""

    @property
    def load(self) -> int:
        """Sequences that run or wait."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    @property
    def longest_short(self) -> int:
        """As ShardInfo has it."""

    def estimate(self, request: Request, now: float) -> Estimate | None:
        """When a request would run that is submitted now; None: that is not known."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def place(request: Request, groups: Sequence[AnyCandidate]) -> AnyCandidate:
    """Chooses one of the groups, of which there is at least one."""
    if len(groups) == 1:
        return groups[0]
    least = min(group.load for group in groups)
    near = [group for group in groups if group.load <= least + LOAD_WINDOW_SEQUENCES]
    prefix = request.prefix(near[0].block_size, near[0].longest_short)
    return max(near, key=lambda group: (group.prefixes.num_cached_blocks(prefix), -group.load))


def place_in_time(request: Request, groups: Sequence[AnyCandidate], now: float) -> AnyCandidate:
    """Chooses one of the groups, of which there is at least one, where the request finishes before its deadline.

    Raises QueueFull if by estimate there is none.
    """
    chosen = place(request, groups)
    if request.deadline_s is None:
        return chosen
    left_s = request.deadline_s - now
    estimates = [(group, group.estimate(request, now)) for group in (chosen, *groups)]
    in_time = [group for group, estimate in estimates if estimate is None or estimate.is_in_time(left_s)]
    if in_time:
        return in_time[0]
    wait_s = min(estimate.wait_s for _, estimate in estimates if estimate is not None)
    message = f"{left_s:.2f} s are left until the deadline; waiting in the queue and running would take longer"
    raise QueueFull(message, retry_after_s=retry_delay_s(wait_s))
