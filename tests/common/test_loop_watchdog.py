"""A process whose event loop hangs ends, and says where it hung."""

import asyncio
import subprocess
import sys
import time

from pagewire_common import loop_watchdog
from pagewire_common.loop_watchdog import EXIT_STATUS, LoopWatchdog

HANGING = """
import asyncio, time
from pagewire_common.loop_watchdog import LoopWatchdog

async def main():
    LoopWatchdog(1.0).start()
    await asyncio.sleep(1.5)
    print("turned", flush=True)
    time.sleep(100)

asyncio.run(main())
"""


def test_a_process_whose_loop_hangs_ends_and_says_where():
    run = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60)
    assert run.returncode == EXIT_STATUS, run.stderr
    assert run.stdout == "turned\n"
    assert "the event loop has hung for " in run.stderr
    assert "line 9 in main" in run.stderr


def test_a_process_that_hangs_in_a_log_that_nobody_reads_ends_too():
    """Its last words would hang as well."""
    hanging = HANGING.replace("time.sleep(100)", "sys.stderr.write('x' * 10_000_000)").replace("time\n", "sys\n", 1)
    with subprocess.Popen([sys.executable, "-c", hanging], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(60) == EXIT_STATUS
        finally:
            process.kill()


async def test_a_loop_that_turns_or_is_stopped_is_left_alone(monkeypatch):
    monkeypatch.setattr(loop_watchdog, "TURN_S", 0.01)
    ended: list[float] = []
    watchdog = LoopWatchdog(0.3, end=ended.append)
    watchdog.start()
    for _ in range(60):
        await asyncio.sleep(0.01)
    watchdog.stop()
    time.sleep(0.5)
    assert ended == []


def test_a_process_that_stood_still_as_a_whole_is_not_ended(monkeypatch):
    """The thread's own sleep was as late as the loop's."""
    ended: list[float] = []
    times = iter([0.0, 0.5, 100.0, 100.5, 101.0, 101.5])
    watchdog = LoopWatchdog(5.0, end=ended.append, clock=lambda: next(times))
    checks = iter([False] * 5)
    monkeypatch.setattr(watchdog._stopped, "wait", lambda _: next(checks, True))
    watchdog._watch()
    assert ended == []
