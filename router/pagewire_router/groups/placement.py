"""Chooses the shard group of a request: the one with most of its prompt cached, among those that are not much busier.

A request that would miss its deadline there goes to another group, or is refused.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from pagewire_common.block_hash import prefix_hashes

from pagewire_router.errors import QueueFull
from pagewire_router.groups.retry_delay import retry_delay_s
from pagewire_router.request import Request
from pagewire_router.scheduling.forecast import Estimate

LOAD_WINDOW_SEQUENCES = 16
"""A group with so many more sequences than the least busy one is not chosen for its cache: the cost of waiting for a
slot in the batch outgrows that of computing a prefix again."""


class PrefixMirror:
    """Hashes of the blocks in a group's prefix cache: a snapshot that every result updates."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def clear(self) -> None:
        """Forgets all blocks, as a new epoch begins with a snapshot."""
        self._hashes.clear()

    def update(self, added: Iterable[int], removed: Iterable[int]) -> None:
        """Applies a snapshot or a result. A block that is both added and removed is gone."""
        self._hashes.update(added)
        self._hashes.difference_update(removed)

    def num_cached_blocks(self, hashes: Iterable[int]) -> int:
        """Number of a prompt's leading blocks that are cached."""
        count = 0
        for value in hashes:
            if value not in self._hashes:
                break
            count += 1
        return count


class Candidate(Protocol):
    """What placement reads of a shard group."""

    mirror: PrefixMirror

    @property
    def load(self) -> int:
        """Sequences that run or wait."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    def estimate(self, request: Request, now: float) -> Estimate | None:
        """When a request would run that is submitted now; None: that is not known."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def place(request: Request, groups: Sequence[AnyCandidate]) -> AnyCandidate:
    """Chooses one of the groups, of which there is at least one."""
    if len(groups) == 1:
        return groups[0]
    least = min(group.load for group in groups)
    near = [group for group in groups if group.load <= least + LOAD_WINDOW_SEQUENCES]
    hashes = list(prefix_hashes(request.prompt_token_ids, near[0].block_size, request.cache_salt))
    return max(near, key=lambda group: (group.mirror.num_cached_blocks(hashes), -group.load))


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
