"""Whether a plan would be run now, and whether the process makes progress."""

from collections.abc import Callable

from pagewire_common.health_state import HealthState
from pagewire_common.patience import NOTICE_S

from pagewire_shard.stepping.step_thread import StepThread

MAX_FAILED_IN_A_ROW = 8
"""Steps that may fail without one that works between them before the shard counts as dead: its device or its state is
broken, not a request."""


class Readiness:
    """Ready: the engine is built, the last step worked, work that waits makes progress, results are taken, and nobody
    said stop.

    Alive: work that waits makes progress, epochs can begin, and not every step fails; so also while the model loads. A
    shard that is not is best started again, which takes long: it is given more time than readiness gives.
    """

    def __init__(self, steps: StepThread, stall_timeout_s: float, unread_s: Callable[[], float] = float) -> None:
        """unread_s: says for how long the router has not taken what is written to it."""
        self._steps = steps
        self._stall_timeout_s = stall_timeout_s
        self._notice_s = min(NOTICE_S, stall_timeout_s)
        self._unread_s = unread_s
        self._opened = False
        self._closed = False

    def state(self) -> HealthState:
        """What the shard does."""
        stats = self._steps.stats
        if self._closed:
            return HealthState.DRAINING
        if not self._opened:
            return HealthState.LOADING
        if stats.failed or self._is_broken():
            return HealthState.FAILED
        if max(stats.stalled_s(), self._unread_s()) >= self._notice_s:
            return HealthState.STALLED
        return HealthState.BUSY if stats.busy else HealthState.IDLE

    def is_ready(self) -> bool:
        """Whether a plan would be run now."""
        return self.state().is_ready

    def is_alive(self) -> bool:
        """Whether the step thread makes progress, or has nothing to do, on a device that answers and works."""
        return not self._is_broken() and self._steps.stats.stalled_s() < self._stall_timeout_s

    def open(self) -> None:
        """The engine is built."""
        self._opened = True

    def close(self) -> None:
        """The shard drains."""
        self._closed = True

    def _is_broken(self) -> bool:
        stats = self._steps.stats
        return stats.broken or stats.num_failed_in_a_row >= MAX_FAILED_IN_A_ROW
