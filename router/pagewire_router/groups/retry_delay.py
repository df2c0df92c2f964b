"""Retry delays of clients that are refused."""

import random

MIN_S, MAX_S = 0.1, 60.0
UNKNOWN_S = 1.0
"""Delay while it is not known how long requests wait."""
JITTER = 0.5
"""Largest share that is added at random, so that clients that were refused together do not come back together."""


def retry_delay_s(wait_s: float | None) -> float:
    """The delay for a request that would have waited for this time; None: the time is not known."""
    seconds = UNKNOWN_S if wait_s is None else min(max(wait_s, MIN_S), MAX_S)
    return seconds * random.uniform(1.0, 1.0 + JITTER)
