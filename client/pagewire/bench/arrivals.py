"""The arrival times of requests: all at once, or a random process of a given rate."""

import math
import random

from pagewire.errors import InvalidRequest


def arrival_times_s(num_requests: int, request_rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """Returns the times at which requests arrive, from the start of the run, in order.

    An infinite rate means a closed loop: every request is there at once and the limit on concurrency paces them.
    Otherwise the gaps follow a gamma distribution of mean 1 / request_rate and shape `burstiness`: 1 is a Poisson
    process, less comes in bursts, more is steadier.

    Args:
        request_rate: requests per second, above 0; math.inf allowed.
        burstiness: above 0.

    Raises:
        InvalidRequest: the rate or the burstiness is not positive.
    """
    if not request_rate > 0:
        raise InvalidRequest(f"the request rate must be above 0, not {request_rate}")
    if not 0 < burstiness < math.inf:
        raise InvalidRequest(f"the burstiness must be above 0 and finite, not {burstiness}")
    if request_rate == math.inf:
        return [0.0] * num_requests
    times_s = []
    now_s = 0.0
    for _ in range(num_requests):
        now_s += rng.gammavariate(burstiness, 1 / (request_rate * burstiness))
        times_s.append(now_s)
    return times_s
