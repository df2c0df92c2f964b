"""Tells whether the shards of a group make progress, by the messages of their plan streams.

Pure: times are passed in, in seconds of one monotonic clock.

A shard's step thread sends a heartbeat every second, but while plans wait or run only if something has moved since the
last one: a layer, a launch, a result. A rank that is silent for `allowed_s` therefore hangs, whether or not it has
plans. A plan that has no result although heartbeats come is given PLAN_PATIENCE times as long.

A shard that hangs grants no lease until it is restarted. One that grants a new lease was slow, not hung. To give it up
after the same time again could repeat the same step for ever, so it is allowed twice the time.
"""

from dataclasses import dataclass

LATE_CHECK_S = 1.0
"""A check later than this means that the router itself stood still, and has yet to read what shards have sent."""
PLAN_PATIENCE = 4.0
MAX_GROWTH = 4.0
"""Most multiples of step_timeout_s that a slow shard is allowed."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A rank that makes no progress."""

    rank: int
    silent_s: float
    """Time since its step thread was last heard of, or since its oldest plan without a result was sent."""

    def __str__(self) -> str:
        return f"rank {self.rank} has made no progress for {self.silent_s:.1f} s"


class StallWatch:
    """Watches one group. The receiver of the plan stream sets heard_s and result_s with each message."""

    def __init__(self, num_ranks: int, step_timeout_s: float) -> None:
        self.heard_s = [0.0] * num_ranks
        """Time of the last message of each rank."""
        self.result_s = 0.0
        """Time of the last result."""
        self.allowed_s = step_timeout_s
        self._step_timeout_s = step_timeout_s
        self._checked_s = 0.0
        self._stalled_incarnation: int | None = None

    def start(self, incarnation: int, now_s: float) -> bool:
        """An epoch begins on the shards whose rank 0 has this incarnation. Returns whether they were slow, not hung."""
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
        """The rank that hangs; None: none does. oldest_plan_s: time when the oldest plan without result was sent."""
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
        """The shards of this incarnation are given up because they make no progress."""
        self._stalled_incarnation = incarnation
