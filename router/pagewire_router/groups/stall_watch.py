"""Tells whether a group makes progress, by the messages of its plan streams and by what waits for it.

Pure: times are passed in, in seconds of one monotonic clock.

A shard's step thread sends a heartbeat every second, but while plans wait or run only if something has moved since the
last one: a layer, a launch, a result. A rank that is silent for as long as it is allowed therefore hangs, with plans or
without. A plan that has no result although heartbeats come is given PLAN_PATIENCE times as long. And while
requests wait or run, plans are to be made: if there is none for so long, the shard has no room for any of them, though
nothing runs there. A new epoch gives it all of its room back.

Health asks much earlier whether a group gets on: see stuck().
"""

from dataclasses import dataclass

from pagewire_common.patience import NOTICE_S, Checks, Patience

TICK_S = 0.25
"""Time between two checks."""
LATE_S = 0.75
"""A check so late says that the router itself stood still, and has yet to read what shards have sent."""
PLAN_PATIENCE = 4.0
MAX_GROWTH = 4.0
"""Most multiples of step_timeout_s that a slow shard is allowed."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A group that makes no progress."""

    rank: int | None
    """The rank that is silent; None: all of them speak, but no plan can be made."""
    silent_s: float
    """Time since its step thread was last heard of, since its oldest plan without a result was sent, or since a plan
    was last under way."""

    def __str__(self) -> str:
        if self.rank is None:
            return f"requests wait, and no step could be planned for {self.silent_s:.1f} s"
        return f"rank {self.rank} has made no progress for {self.silent_s:.1f} s"


class StallWatch:
    """Watches one group. The receiver of the plan stream sets heard_s and result_s with each message."""

    def __init__(self, num_ranks: int, step_timeout_s: float) -> None:
        self.heard_s = [0.0] * num_ranks
        """Time of the last message of each rank."""
        self.result_s = 0.0
        """Time of the last result."""
        self.patience = Patience(step_timeout_s, MAX_GROWTH * step_timeout_s)
        self._checks = Checks(TICK_S, LATE_S)
        self._planned_s = 0.0
        """Time of the last check at which a plan was under way, or nothing waited for one."""

    def start(self, incarnation: int, now_s: float) -> bool:
        """An epoch begins on the shards whose rank 0 has this incarnation. Returns whether they were slow, not hung."""
        self._checks.start(now_s)
        self.result_s = self._planned_s = now_s
        self.heard_s = [now_s] * len(self.heard_s)
        return self.patience.start(incarnation)

    def check(self, now_s: float, oldest_plan_s: float | None, *, has_work: bool = False) -> Stall | None:
        """How the group hangs; None: it does not. To be called every TICK_S.

        Args:
            oldest_plan_s: time when the oldest plan without result was sent; None: no plan is under way.
            has_work: requests run, or wait for nothing but a plan.
        """
        if lost_s := self._checks.lost_s(now_s):
            self.result_s = min(self.result_s + lost_s, now_s)
            self._planned_s = min(self._planned_s + lost_s, now_s)
            self.heard_s = [min(heard_s + lost_s, now_s) for heard_s in self.heard_s]
        if oldest_plan_s is not None or not has_work:
            self._planned_s = now_s
        return self._stall(now_s, oldest_plan_s, self.patience.allowed_s)

    def stuck(self, now_s: float) -> Stall | None:
        """How the group has got on too little for NOTICE_S; None: it gets on, or has nothing to do.

        Nothing is given up for that: the group may only be slow.
        """
        return self._stall(now_s, None, NOTICE_S)

    def _stall(self, now_s: float, oldest_plan_s: float | None, allowed_s: float) -> Stall | None:
        for rank, heard_s in enumerate(self.heard_s):
            if now_s - heard_s > allowed_s:
                return Stall(rank, now_s - heard_s)
        if oldest_plan_s is not None:
            waited_s = now_s - max(oldest_plan_s, self.result_s)
            return Stall(0, waited_s) if waited_s > PLAN_PATIENCE * allowed_s else None
        waited_s = now_s - max(self._planned_s, self.result_s)
        return Stall(None, waited_s) if waited_s > allowed_s else None
