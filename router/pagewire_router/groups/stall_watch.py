"""Says whether the shards of a group still make progress, from what comes up their plan streams.

Pure: the clock is passed in, in seconds on any one monotonic clock.

A shard's step thread sends a heartbeat every second, but while plans wait or run only if something has moved since the
last one: a layer, a launch, a result. So a rank of which nothing is heard for `allowed_s` hangs, whether or not it has
plans. That a plan has no result although heartbeats come is given PLAN_PATIENCE times as long.

A shard that hangs does not welcome a router back before it has been started anew. One that does was slow, not hung: to
cut it off after the same time again would recompute the same step for ever, so it is allowed twice the time.
"""

from dataclasses import dataclass

LATE_CHECK_S = 1.0
"""A check this late says that the router itself stood still: what shards have sent meanwhile is yet to be read."""
PLAN_PATIENCE = 4.0
MAX_GROWTH = 4.0
"""How many times step_timeout_s a slow shard is allowed at most."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A rank that makes no progress."""

    rank: int
    silent_s: float
    """For how long nothing was heard of its step thread, or its oldest plan has had no result."""

    def __str__(self) -> str:
        return f"rank {self.rank} has made no progress for {self.silent_s:.1f} s"


class StallWatch:
    """Watches one group. The receiver sets heard_s and result_s, with each message."""

    def __init__(self, num_ranks: int, step_timeout_s: float) -> None:
        self.heard_s = [0.0] * num_ranks
        """When each rank last said anything."""
        self.result_s = 0.0
        """When the last result came."""
        self.allowed_s = step_timeout_s
        self._step_timeout_s = step_timeout_s
        self._checked_s = 0.0
        self._stalled_incarnation: int | None = None

    def start(self, incarnation: int, now_s: float) -> bool:
        """An epoch begins on the shards whose rank 0 has this incarnation. True: they were slow, not hung."""
        was_slow = incarnation == self._stalled_incarnation
        if was_slow:
            self.allowed_s = min(2 * self.allowed_s, MAX_GROWTH * self._step_timeout_s)
        elif self._stalled_incarnation is not None:
            self.allowed_s = self._step_timeout_s
        self._stalled_incarnation = None
        self._checked_s = self.result_s = now_s
        self.heard_s = [now_s] * len(self.heard_s)
        return was_slow

    def check(self, now_s: float, oldest_plan_s: float | None) -> Stall | None:
        """The rank that hangs, if one does. oldest_plan_s: when the oldest plan without a result was sent."""
        late_s = now_s - self._checked_s
        self._checked_s = now_s
        if late_s > LATE_CHECK_S:
            self.result_s = min(self.result_s + late_s, now_s)
            self.heard_s = [min(heard_s + late_s, now_s) for heard_s in self.heard_s]
        for rank, heard_s in enumerate(self.heard_s):
            if now_s - heard_s > self.allowed_s:
                return Stall(rank, now_s - heard_s)
        if oldest_plan_s is not None:
            waited_s = now_s - max(oldest_plan_s, self.result_s)
            if waited_s > PLAN_PATIENCE * self.allowed_s:
                return Stall(0, waited_s)
        return None

    def note_stall(self, incarnation: int) -> None:
        """The shards of this incarnation are let go because they make no progress."""
        self._stalled_incarnation = incarnation
