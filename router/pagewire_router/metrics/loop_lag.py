"""How late the event loop is: the one figure that says whether a router has work enough for two."""

import asyncio
import time

from pagewire_common.histogram import Histogram

INTERVAL_S = 0.25


async def watch_loop_lag(histogram: Histogram) -> None:
    """Observes the lag, until cancelled."""
    while True:
        due_s = time.monotonic() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        histogram.observe(max(time.monotonic() - due_s, 0.0))
