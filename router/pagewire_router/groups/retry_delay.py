"""When a client that was refused is told to come back."""

import random

MIN_S, MAX_S = 0.1, 60.0
UNKNOWN_S = 1.0
"""While it is not known how long requests wait."""
JITTER = 0.5
"""At most this share is added at random, so that clients that were refused together do not come back together."""


def retry_delay_s(wait_s: float | None) -> float:
    """The delay for a request that would have had to wait so long; None: it is not known how long."""
    seconds = UNKNOWN_S if wait_s is None else min(max(wait_s, MIN_S), MAX_S)
    return seconds * random.uniform(1.0, 1.0 + JITTER)
