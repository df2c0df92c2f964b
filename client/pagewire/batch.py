"""Sends many prompts with a bounded number of open requests, so that the server's queue is not overrun."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from pagewire.errors import InvalidRequest
from pagewire.prompts import Prompt

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2

MAX_WINDOW = 2048
"""Twice the sequences that a shard chooses to run at most: its batches stay full while answers are on their way.
Prompts that are too long for so many to wait are refused and sent again, see PATIENT in retry.py."""

Request = TypeVarTuple("Request")
Output = TypeVar("Output")


def window_for(model: "inference_pb2.Model") -> int:
    """Returns how many requests to keep open at a server: as many as its queue takes, at most MAX_WINDOW."""
    return max(1, min(model.max_queued_requests or MAX_WINDOW, MAX_WINDOW))


def one_for_each(name: str, prompts: Sequence[Prompt], given: Any) -> list[Any]:
    """Returns one value for each prompt. A collection holds one for each; any other value is used for all of them.

    Args:
        name: name of the argument, for errors.

    Raises:
        InvalidRequest: the collection has another length than prompts.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        return [given] * len(prompts)
    listed: Any = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(listed, Iterable):  # an array without a dimension
        return [listed] * len(prompts)
    each = list(listed)
    if len(each) != len(prompts):
        raise InvalidRequest.of_field(
            name, f"{len(each)} given for {len(prompts)} prompts, accepted: one, or one for each prompt"
        )
    return each


async def run_windowed(
    complete: Callable[[*Request], Awaitable[Output]],
    requests: Sequence[tuple[*Request]],
    window: int,
    on_output: Callable[[Output], None] | None = None,
) -> list[Output]:
    """Runs the requests in order, at most `window` at a time; returns the answers in the same order.

    The first error cancels the rest and is raised.
    """
    outputs: dict[int, Output] = {}
    remaining = iter(enumerate(requests))

    async def work() -> None:
        for index, request in remaining:
            output = outputs[index] = await complete(*request)
            if on_output is not None:
                on_output(output)

    workers: list[asyncio.Future[None]] = []
    try:
        for _ in range(min(window, len(requests))):
            workers.append(asyncio.ensure_future(work()))
            # Encoding a long prompt takes a while: the first is on its way before the others are encoded.
            await asyncio.sleep(0)
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [outputs[index] for index in range(len(requests))]
