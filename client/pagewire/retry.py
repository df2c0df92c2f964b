"""Decides when to send or to resume a request again: if the server is full or unavailable."""

import random
import time
from dataclasses import dataclass, field

from pagewire.errors import AlreadyExists, PagewireError, QueueFull, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often to try."""

    max_queue_wait_s: float = 60.0
    """A request that is refused for this long because the queue is full fails with QueueFull."""
    max_unavailable_s: float = 30.0
    """A request without a timeout fails with Unavailable if no server is available for this long. A request with a
    timeout is tried until its timeout."""
    max_unavailable_attempts: int | None = None
    """A request fails after this many attempts in a row at an unavailable server, whatever time has passed; None: only
    the time counts."""
    min_delay_s: float = 0.05
    """Wait before the second attempt if the server sent no RetryInfo; doubles with each attempt."""
    max_delay_s: float = 1.0
    """Longest wait between two attempts if the server sent no RetryInfo."""


NEVER = RetryPolicy(max_queue_wait_s=0.0, max_unavailable_attempts=1)
"""No retries: errors reach the caller at once."""
PATIENT = RetryPolicy(max_queue_wait_s=float("inf"))
"""For batches, which meet a full queue all the time: they wait for it without limit."""


@dataclass(slots=True)
class Attempts:
    """Counts the attempts of one request and the time left for them."""

    policy: RetryPolicy
    timeout_s: float | None
    """Timeout of all attempts together; None: no limit."""
    _start_s: float = field(default_factory=time.monotonic)
    _refused_since_s: float = field(default_factory=time.monotonic)
    """When a full queue could refuse it first."""
    _num_failed: int = 0
    _num_unavailable: int = 0
    _unavailable_since_s: float = 0.0

    def remaining_s(self) -> float | None:
        """Returns what is left of the timeout for the next attempt; None: no limit."""
        return None if self.timeout_s is None else max(0.0, self.timeout_s - self._elapsed_s())

    def begin_anew(self) -> None:
        """The last attempt has brought something: failures before it count no more."""
        self._num_failed = self._num_unavailable = 0
        self._refused_since_s = time.monotonic()

    def delay_s(self, error: PagewireError) -> float | None:
        """Returns how long to wait before the next attempt after `error`; None: the error is final."""
        if self._is_final(error):
            return None
        delay_s = self._next_delay_s(error.retry_after_s)
        remaining_s = self.remaining_s()
        return None if remaining_s is not None and delay_s >= remaining_s else delay_s

    def _is_final(self, error: PagewireError) -> bool:
        # The last attempt of this request, whose connection broke, may still hold the id.
        is_own = isinstance(error, AlreadyExists) and self._num_unavailable > 0
        if not isinstance(error, Unavailable) and not is_own:
            self._num_unavailable = 0
            waited_s = time.monotonic() - self._refused_since_s
            return not isinstance(error, QueueFull) or waited_s >= self.policy.max_queue_wait_s
        if self._num_unavailable == 0:
            self._unavailable_since_s = time.monotonic()
        self._num_unavailable += 1
        if self.policy.max_unavailable_attempts is not None:
            return self._num_unavailable >= self.policy.max_unavailable_attempts
        waited_s = time.monotonic() - self._unavailable_since_s
        return self.timeout_s is None and waited_s >= self.policy.max_unavailable_s

    def _next_delay_s(self, retry_after_s: float | None) -> float:
        # Jitter only adds to the server's delay, so that refused clients come back neither all at once nor early.
        if retry_after_s is not None:
            return retry_after_s * random.uniform(1.0, 1.5)
        doubled_s = self.policy.min_delay_s * 2.0 ** min(self._num_failed, 16)
        self._num_failed += 1
        return min(doubled_s, self.policy.max_delay_s) * random.uniform(0.5, 1.0)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start_s
