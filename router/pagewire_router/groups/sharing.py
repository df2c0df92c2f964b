"""Shares the shard groups out among the routers that would drive them, without a word between routers.

Every router asks for the lease of every group that it does not drive, again and again. A shard therefore knows who
drives it and who would, and tells every router (GetInfo), so that all of them count alike.

- The lease of a group that is free is taken at once by a router that drives as few groups as any. The others take it if
  it has been free for ADOPT_AFTER_S: they adopt it when its router has died and nobody else has come.
- A router with two groups more than another one hands back one that the other waits for, one at a time. Its requests
  move to the groups that it keeps, with the tokens they have.

What a router counts by may be some seconds old. That delays an even distribution; which router drives a group is
decided by the lease alone.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from pagewire.v1 import shard_pb2

ADOPT_AFTER_S = 0.7
"""A lease that has been free for so long is anybody's. Routers ask about twice a second."""
HAND_BACK_PAUSE_S = 8.0
"""Time between two groups that are handed back: by then what shards have said shows the first one."""


class Driven(Protocol):
    """What sharing reads of a shard group."""

    @property
    def info(self) -> shard_pb2.ShardInfo:
        """Its description."""

    @property
    def is_serving(self) -> bool:
        """Whether this router drives it."""

    @property
    def is_draining(self) -> bool:
        """Whether it is about to stop, or is being handed back."""

    @property
    def load(self) -> int:
        """Sequences that run or wait."""


AnyDriven = TypeVar("AnyDriven", bound=Driven)


class Sharing:
    """One router's part of the shard groups."""

    def __init__(self, router_id: str) -> None:
        self._router_id = router_id
        self._infos: dict[str, shard_pb2.ShardInfo] = {}
        self._next_hand_back_s = -math.inf

    def update(self, infos: Iterable[shard_pb2.ShardInfo]) -> None:
        """Takes in what the first shard of each group has said last."""
        self._infos = {info.group_id: info for info in infos}

    def patience_s(self, groups: Sequence[Driven]) -> float:
        """How long the lease of a group must have been free before this router takes it."""
        num_driven = sum(group.is_serving and not group.is_draining for group in groups)
        return 0.0 if num_driven <= min(self._num_driven_of(groups).values()) else ADOPT_AFTER_S

    def num_driven_by_others(self, groups: Sequence[Driven]) -> int | None:
        """How many groups all other routers together drive; None: there is no other router."""
        num_driven = self._num_driven_of(groups)
        del num_driven[self._router_id]
        return num_driven.total() if num_driven else None

    def surplus(self, groups: Sequence[AnyDriven], now_s: float) -> AnyDriven | None:
        """The group to hand back now; None: there is none."""
        mine = [group for group in groups if group.is_serving and not group.is_draining]
        if len(mine) < 2 or now_s < self._next_hand_back_s:
            return None
        routers = self._num_driven_of(groups)
        few = {name for name, num_driven in routers.items() if num_driven <= len(mine) - 2}
        wanted = [group for group in mine if not few.isdisjoint(self._waiting_for(group))]
        if not wanted:
            return None
        self._next_hand_back_s = now_s + HAND_BACK_PAUSE_S
        return min(wanted, key=lambda group: group.load)

    def _waiting_for(self, group: Driven) -> Sequence[str]:
        info = self._infos.get(group.info.group_id)
        return () if info is None else info.waiting_routers

    def _num_driven_of(self, groups: Sequence[Driven]) -> Counter[str]:
        """How many groups each router drives; all routers that are known to live have an entry."""
        mine = {group.info.group_id for group in groups if group.is_serving}
        num_driven = Counter({self._router_id: len(mine)})
        for group_id, info in self._infos.items():
            for name in info.waiting_routers:
                num_driven[name] += 0
            if info.lease_holder and info.lease_holder != self._router_id and group_id not in mine:
                num_driven[info.lease_holder] += 1
        return num_driven
