"""Offers a load from several processes: one reads ten to twenty thousand messages per second, and no more.

A process of its own is started for each part by this module as a command. It gets its part as a pickle on standard
input, prints READY, waits for the time at which the run begins, and writes the outcomes as a pickle. It ends when its
standard input does, so that none outlives the command.
"""

import asyncio
import importlib.util
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from time import perf_counter
from typing import IO, Any, TypeVar

from pagewire.bench.metrics import RequestOutcome
from pagewire.bench.runner import Load, offer_parts
from pagewire.bench.sending import Target

T = TypeVar("T")
STREAMS_PER_PROCESS = 256
CORES_PER_PROCESS = 4
"""Fewer cores for each process would be taken from a server on the same machine."""
HEAD_START_S = 0.1
READY = b"ready\n"


def default_processes(num_requests: int, max_concurrency: int | None) -> int:
    """Returns how many processes offer a load on this machine: one for every 256 open streams, if cores suffice."""
    num_open = min(num_requests, max_concurrency or num_requests)
    return max(1, min(math.ceil(num_open / STREAMS_PER_PROCESS), (os.cpu_count() or 1) // CORES_PER_PROCESS))


def split(load: Load, num_parts: int) -> list[Load]:
    """Returns the parts of a load that so many processes offer, requests dealt out in turn."""
    limit = load.max_concurrency
    return [
        replace(
            load,
            requests=load.requests[part::num_parts],
            arrivals_s=load.arrivals_s[part::num_parts],
            max_concurrency=None if limit is None else limit // num_parts + (part < limit % num_parts),
        )
        for part in range(num_parts)
    ]


async def offer_from_processes(
    load: Load, target: Target, num_processes: int, on_done: Callable[[RequestOutcome], None]
) -> tuple[list[RequestOutcome], float]:
    """As offer(), from processes of their own. `on_done` is called when the requests of a process have ended.

    Args:
        num_processes: at most the requests, and at most the load's max_concurrency.

    Raises:
        RuntimeError: a process has ended before its outcomes were there.
    """
    parts: list[list[RequestOutcome]] = [[] for _ in load.requests]
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(part, target)) for part in split(load, num_processes)]
        for worker in workers:
            await asyncio.to_thread(worker.wait_ready)
        origin_s = perf_counter() + HEAD_START_S
        for worker in workers:
            worker.begin(origin_s)
        for index, worker in enumerate(workers):
            parts[index::num_processes] = ended = await asyncio.to_thread(worker.outcomes)
            for outcome in (outcome for part in ended for outcome in part):
                on_done(outcome)
    all_outcomes = [outcome for part in parts for outcome in part]
    return all_outcomes, max((outcome.end_s for outcome in all_outcomes), default=0.0)


class _Worker:
    """A process that offers a part of a load."""

    def __init__(self, part: Load, target: Target) -> None:
        command = [sys.executable, "-m", "pagewire.bench.processes"]
        # In a group of its own, since Ctrl-C is for the command, which ends its processes.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        self._send((part, target))

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        # First, since a thread may be reading from it, and holds what close() would wait for.
        self._process.terminate()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # It has ended, and what was for it is still in the buffer.
                pipe.close()

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            raise self._end("before it began")

    def begin(self, origin_s: float) -> None:
        """origin_s: perf_counter() at which the run begins; processes of one machine share that clock."""
        self._send(origin_s)

    def outcomes(self) -> Sequence[list[RequestOutcome]]:
        assert self._process.stdout is not None
        try:
            outcomes: list[list[RequestOutcome]] = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._end("within the run") from None
        return outcomes

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(value, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._end("before it began") from None

    def _end(self, when: str) -> RuntimeError:
        return RuntimeError(f"a client process ended with status {self._process.wait()} {when}")


def run_event_loop(main: Coroutine[Any, Any, T]) -> T:
    """Runs on uvloop if it is installed: a faster client leaves more of a shared machine to the server."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


async def _work(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The worker's side of the protocol."""
    part, target = pickle.load(requests)
    sender = target.connect()
    answers.write(READY)
    answers.flush()
    origin_s: float = pickle.load(requests)
    asyncio.get_running_loop().add_reader(requests.fileno(), os._exit, 1)
    try:
        outcomes, _ = await offer_parts(part, sender, on_done=lambda _: None, origin_s=origin_s)
    finally:
        await sender.close()
    pickle.dump(outcomes, answers)
    answers.flush()


if __name__ == "__main__":
    run_event_loop(_work(sys.stdin.buffer, sys.stdout.buffer))
