"""Whether a plan would be run now, and whether the process makes progress."""

from pagewire_shard.stepping.step_thread import StepThread

MAX_FAILED_IN_A_ROW = 8
"""Steps that may fail without one that works between them before the shard counts as dead: its device or its state is
broken, not a request."""


class Readiness:
    """Ready: the engine is built, the last step worked, work that waits makes progress, and nobody said stop.

    Alive: work that waits makes progress, epochs can begin, and not every step fails; so also while the model loads. A
    shard that is not is best started again.
    """

    def __init__(self, steps: StepThread, stall_timeout_s: float) -> None:
        self._steps = steps
        self._stall_timeout_s = stall_timeout_s
        self._opened = False

    def is_ready(self) -> bool:
        """Whether a plan would be run now."""
        return self._opened and not self._steps.stats.failed and self.is_alive()

    def is_alive(self) -> bool:
        """Whether the step thread makes progress, or has nothing to do, on a device that answers and works."""
        stats = self._steps.stats
        is_broken = stats.broken or stats.num_failed_in_a_row >= MAX_FAILED_IN_A_ROW
        return not is_broken and stats.stalled_s() < self._stall_timeout_s

    def open(self) -> None:
        """The engine is built."""
        self._opened = True

    def close(self) -> None:
        """The shard drains."""
        self._opened = False
