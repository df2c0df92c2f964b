"""How many messages per second may be written to clients: what the event loop is measured to have time for.

A message costs the event loop tens of microseconds, more on a slow machine. Three figures decide, all measured while
messages are written:

- the cost of a message: the thread's CPU time per write in turns of the loop that write, the median of recent turns;
- what else the loop does (plans, results, new requests): its CPU time per second, less that of the writes;
- whether the thread gets a core when it wants one: CPU time over elapsed time in those turns. Where it has to wait,
  cores are scarce, and a message would take time from the shard or the client on the same machine.

Messages get the time that is left up to TARGET_BUSY, at most MAX_SHARE, and less the more the thread waits for a core;
a number of them, which depends on the front, is always allowed.
"""

import math
import time
from collections import deque
from collections.abc import Callable

MIN_WRITES_PER_S = 2000.0
TARGET_BUSY = 0.75
"""Share of its time that the event loop may be busy, so that plans and results find it idle often enough."""
MAX_SHARE = 0.5
"""Largest share of its time for messages."""
SCARCE, PLENTIFUL = 0.55, 0.8
"""CPU time over elapsed time below which only what is always allowed goes out, and above which cores are free."""
UPDATE_S = 0.1
MEMORY_S = 1.0
"""A measurement counts for less the older it is: by a factor e after so much time."""
NUM_TURNS = 64
"""Turns of the loop that the median cost is taken over."""
MIN_TURNS = 8
"""Fewer turns say nothing."""


class WriteBudget:
    """Measures one event loop; used on its thread only."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
        *,
        min_writes_per_s: float = MIN_WRITES_PER_S,
    ) -> None:
        """
        Args:
            clock, cpu_clock: seconds of elapsed time, and of CPU time of the calling thread.
            min_writes_per_s: messages that are always allowed.
        """
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._min_writes_per_s = min_writes_per_s
        self.writes_per_s = min_writes_per_s
        """Messages that may be written per second."""
        self.cost_s = 0.0
        """CPU time of a message; 0 until it is known."""
        self.busy = 0.0
        """Share of its time that the event loop's thread computes."""
        self.served = 1.0
        """Share of the time in which it would compute that it has a core."""
        self._costs_s: deque[float] = deque(maxlen=NUM_TURNS)
        self._turn_s = self._turn_cpu_s = 0.0
        self._turns_s = self._turns_cpu_s = 0.0
        """Sums over turns, with fading memory."""
        self._num_writes = 0
        """Since the last update."""
        self._write_share = 0.0
        self._updated_s, self._updated_cpu_s = clock(), cpu_clock()

    def on_turn(self, num_writes: int) -> None:
        """To be called once in each turn of the loop while messages are written.

        num_writes: messages that were written since the last call; 0 if the loop may have waited since then.
        """
        now_s, cpu_s = self._clock(), self._cpu_clock()
        if num_writes:
            turn_s, turn_cpu_s = now_s - self._turn_s, cpu_s - self._turn_cpu_s
            self._costs_s.append(turn_cpu_s / num_writes)
            self._turns_s += turn_s
            self._turns_cpu_s += turn_cpu_s
            self._num_writes += num_writes
        self._turn_s, self._turn_cpu_s = now_s, cpu_s
        if now_s - self._updated_s >= UPDATE_S:
            self._update(now_s, cpu_s)

    def _update(self, now_s: float, cpu_s: float) -> None:
        elapsed_s = now_s - self._updated_s
        fresh = 1.0 - math.exp(-elapsed_s / MEMORY_S)
        self.busy += fresh * ((cpu_s - self._updated_cpu_s) / elapsed_s - self.busy)
        self._updated_s, self._updated_cpu_s = now_s, cpu_s
        num_writes, self._num_writes = self._num_writes, 0
        if len(self._costs_s) < MIN_TURNS:
            return
        self.cost_s = sorted(self._costs_s)[len(self._costs_s) // 2]
        self._write_share += fresh * (num_writes * self.cost_s / elapsed_s - self._write_share)
        if self._turns_s > 0.0:
            self.served = min(1.0, self._turns_cpu_s / self._turns_s)
        self._turns_s *= 1.0 - fresh
        self._turns_cpu_s *= 1.0 - fresh
        self.writes_per_s += fresh * (self._allowed() - self.writes_per_s)

    def _allowed(self) -> float:
        left = TARGET_BUSY - max(0.0, self.busy - self._write_share)
        plenty = (self.served - SCARCE) / (PLENTIFUL - SCARCE)
        share = min(max(left, 0.0), MAX_SHARE) * min(max(plenty, 0.0), 1.0)
        return max(self._min_writes_per_s, share / max(self.cost_s, 1e-6))
