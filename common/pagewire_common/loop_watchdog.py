"""Ends a process whose event loop hangs, so that its streams break and go on elsewhere.

A process with such a loop looks alive from outside: the kernel takes connections and gRPC answers pings, while streams
and health checks get no word. A thread looks whether the loop turns. It cannot run while something holds Python's
global lock; then only probes from outside notice.
"""

import asyncio
import faulthandler
import os
import threading
import time
from collections.abc import Callable

from pagewire_common.patience import Checks

TIMEOUT_S = 10.0
EXIT_STATUS = 70
"""EX_SOFTWARE of sysexits.h."""
TURN_S = 0.5
LATE_S = 1.0
"""A check that is late by so much says that the whole process stood still."""
LAST_WORDS_S = 1.0
"""Longest time to say where it hangs: a standard error that nobody reads may be what the loop hangs in."""


class LoopWatchdog:
    """Watches the running event loop from start() to stop()."""

    def __init__(
        self,
        timeout_s: float = TIMEOUT_S,
        *,
        end: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """end: called on the watching thread with the time for which the loop has hung; default: ends the process."""
        self._timeout_s = timeout_s
        self._clock = clock
        self._end = end or _end_process
        self._num_turns = 0
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to watch. Called in the loop."""
        self._turn(asyncio.get_running_loop())
        threading.Thread(target=self._watch, name="loop watchdog", daemon=True).start()

    def stop(self) -> None:
        """Ends it. Called in the loop."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._num_turns += 1
        self._timer = loop.call_later(TURN_S, self._turn, loop)

    def _watch(self) -> None:
        seen, since_s = self._num_turns, self._clock()
        checks = Checks(TURN_S, LATE_S)
        checks.start(since_s)
        while not self._stopped.wait(TURN_S):
            now_s = self._clock()
            since_s += checks.lost_s(now_s)
            if self._num_turns != seen:
                seen, since_s = self._num_turns, now_s
            elif now_s - since_s >= self._timeout_s:
                self._end(now_s - since_s)
                return


def _end_process(hung_s: float) -> None:
    """Says where it hangs, and ends the process without a word to anybody: nobody could be told."""
    saying = threading.Thread(target=_say_where, args=(hung_s,), daemon=True)
    saying.start()
    saying.join(LAST_WORDS_S)
    os._exit(EXIT_STATUS)


def _say_where(hung_s: float) -> None:
    message = f"the event loop has hung for {hung_s:.1f} s; the process ends\n"
    # Not by sys.stderr, whose lock a thread may hold that hangs in it.
    os.write(2, message.encode())
    faulthandler.dump_traceback(file=2, all_threads=True)
