"""Sends the requests and records the responses, at little cost for the client.

While it runs, a message costs one clock reading and two list appends: the client often shares its cores with the server
it measures, so messages stay undecoded until the last one has arrived.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from pagewire.bench.metrics import RequestOutcome
from pagewire.bench.sending import Recording, Sender, Session


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a run, and when they are sent."""

    requests: Sequence[bytes | Session]
    """Serialized requests, and sessions of several."""
    arrivals_s: Sequence[float]
    """Seconds from the start of the run, ascending, one for each of `requests`."""
    max_concurrency: int | None = None
    """Most requests, or sessions, to have open at a time; further ones wait. None: no limit."""


async def offer(
    load: Load, sender: Sender, on_done: Callable[[Recording], None], *, origin_s: float | None = None
) -> tuple[list[RequestOutcome], float]:
    """Sends every request at its time.

    Args:
        on_done: called as each request ends.
        origin_s: perf_counter() at which the run begins; None: now.

    Returns:
        The result of each request, in order, those of a session together, and the duration of the run in seconds. A
        request that fails is an outcome with an error, never an exception, and is not sent again.
    """
    parts, duration_s = await offer_parts(load, sender, on_done, origin_s=origin_s)
    return [outcome for part in parts for outcome in part], duration_s


async def offer_parts(
    load: Load, sender: Sender, on_done: Callable[[Recording], None], *, origin_s: float | None = None
) -> tuple[list[list[RequestOutcome]], float]:
    """As offer(), with the outcomes of each entry of the load."""
    gate = asyncio.Semaphore(load.max_concurrency or max(1, len(load.requests)))
    recordings: list[list[Recording]] = [[] for _ in load.requests]

    async def send(request: bytes, into: list[Recording]) -> Recording:
        recording = Recording()
        into.append(recording)
        recording.start_s = perf_counter()
        await sender.send(request, recording)
        recording.end_s = perf_counter()
        on_done(recording)
        return recording

    async def run(request: bytes | Session, into: list[Recording]) -> None:
        async with gate:
            if isinstance(request, bytes):
                await send(request, into)
                return
            content = request.turns[0].content
            for number, turn in enumerate(request.turns):
                recording = await send(sender.serialize(content, turn.max_tokens), into)
                if recording.error or number + 1 == len(request.turns):
                    return
                content = sender.continued(content, recording, request.turns[number + 1].content)
                await asyncio.sleep(request.delay_s)

    origin_s = perf_counter() if origin_s is None else origin_s
    await asyncio.sleep(origin_s - perf_counter())
    async with asyncio.TaskGroup() as tasks:
        for request, arrival_s, into in zip(load.requests, load.arrivals_s, recordings, strict=True):
            delay_s = origin_s + arrival_s - perf_counter()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            tasks.create_task(run(request, into))
    duration_s = perf_counter() - origin_s
    return [[sender.outcome(each, origin_s) for each in part] for part in recordings], duration_s
