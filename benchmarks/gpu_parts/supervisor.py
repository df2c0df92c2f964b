"""Runs parts in worker processes: one at a time, each within its limit, all within the budget.

A worker that dies, hangs or loses its device is replaced, and the parts after the one it failed in go on.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from gpu_parts.records import Answer

READ_BYTES = 1 << 16
EXIT_GRACE_S = 10.0


class PartFailed(Exception):
    """The worker did not answer; the message says why."""


class Worker:
    """One worker process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._received = b""

    def run(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Runs one part. Raises PartFailed; the worker is of no use then."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PartFailed(f"the worker ended with status {self._process.wait()}") from None
        answer: dict[str, Any] = json.loads(self._read_line(limit_s))
        return answer

    def stop(self) -> None:
        """Ends the process and what it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()

    def kill(self) -> None:
        """Kills the process and the servers that it may have started, which are in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read_line(self, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        ends_s = perf_counter() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, ends_s - perf_counter())):
                    raise PartFailed(f"took longer than {limit_s:.0f} s")
                chunk = os.read(self._process.stdout.fileno(), READ_BYTES)
                if not chunk:
                    raise PartFailed(f"the worker ended with status {self._process.wait()}")
                self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line


def run_parts(
    parts: Sequence[tuple[str, float]],
    command: Sequence[str],
    budget_s: float,
    on_answer: Callable[[str, Answer], None],
) -> None:
    """Runs parts in order.

    Args:
        parts: (name, limit in seconds).
        command: starts a worker.
        budget_s: parts that have not begun by then are skipped; one that runs is ended.
        on_answer: called with each part's answer, at once.
    """
    ends_s = perf_counter() + budget_s
    worker: Worker | None = None
    ceilings: dict[str, float] | None = None
    for name, limit_s in parts:
        left_s = ends_s - perf_counter()
        if left_s <= 0:
            on_answer(name, Answer(skipped="out of time"))
            continue
        worker = worker or Worker(command)
        try:
            raw = worker.run({"part": name, "ceilings": ceilings}, min(limit_s, left_s))
        except PartFailed as error:
            worker.kill()
            worker = None
            on_answer(name, Answer(error=str(error)))
            continue
        ceilings = raw.pop("ceilings", ceilings)
        if raw.pop("device_lost", False):
            worker.stop()
            worker = None
        on_answer(name, Answer(**raw))
    if worker is not None:
        worker.stop()
