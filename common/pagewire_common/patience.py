"""How long those who watch others wait, and what they must not hold against them.

Pure: times are passed in, in seconds of one monotonic clock.
"""

NOTICE_S = 4.0
"""Longest time without progress, while there is work, until health says so. Probes have 5 s to find out."""


class Checks:
    """Checks that come at an interval. One that is late says that the watching thread itself stood still."""

    def __init__(self, interval_s: float, late_s: float) -> None:
        """late_s: a check may be late by so much."""
        self._longest_s = interval_s + late_s
        self._checked_s = 0.0

    def start(self, now_s: float) -> None:
        """The first check comes one interval from now."""
        self._checked_s = now_s

    def lost_s(self, now_s: float) -> float:
        """Notes a check. Returns the time since the last one if this one is late, which nobody else has to answer for:
        what they did meanwhile has yet to be seen. Otherwise 0."""
        since_s, self._checked_s = now_s - self._checked_s, now_s
        return since_s if since_s > self._longest_s else 0.0


class Patience:
    """The time that a process is allowed. One that was given up and comes back was slow: it is allowed twice the time.

    To give it up after the same time again could repeat the same work for ever.
    """

    def __init__(self, base_s: float, max_s: float) -> None:
        self.allowed_s = base_s
        self._base_s = base_s
        self._max_s = max_s
        self._given_up: int | None = None

    def start(self, incarnation: int) -> bool:
        """The process with this incarnation serves from now on. Returns whether it was slow when it was given up."""
        was_slow = incarnation == self._given_up
        if was_slow:
            self.allowed_s = min(2 * self.allowed_s, self._max_s)
        elif self._given_up is not None:
            self.allowed_s = self._base_s
        self._given_up = None
        return was_slow

    def give_up(self, incarnation: int) -> None:
        """The process with this incarnation has taken longer than it is allowed."""
        self._given_up = incarnation
