"""The step thread's counters, for health and metrics."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class StepStats:
    """Written by the step thread, read by anyone; each field is right by itself."""

    busy: bool = False
    """Commands or steps are being worked on."""
    progress_s: float = 0.0
    """time.monotonic() when a launch, a result or an epoch was last done with, or when work came to an idle thread."""
    failed: bool = False
    """The last step broke with an unexpected error; cleared by the next one that works."""
    num_steps: int = 0
    num_refused_plans: int = 0
    num_sampled_tokens: int = 0
    queue_s: float = 0.0
    """Time that plans waited for their turn."""
    step_s: float = 0.0
    """Time in steps."""
    free_blocks: list[int] = field(default_factory=list)
    """For each cache group."""
    num_cached_blocks: int = 0

    def stalled_s(self) -> float:
        """For how long work has waited without any progress."""
        return time.monotonic() - self.progress_s if self.busy else 0.0
