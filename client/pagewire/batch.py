"""Many prompts at once: a window of open requests moves over them, so that a bounded queue is enough."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from pagewire.errors import InvalidRequest
from pagewire.outputs import RequestOutput
from pagewire.prompts import Prompt
from pagewire.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2

MAX_WINDOW = 512
"""Enough to keep any one server's batches full."""

Complete = Callable[[Prompt, SamplingParams | None, int], Awaitable[RequestOutput]]


def window_for(model: "inference_pb2.Model") -> int:
    """How many requests to keep open at a server: as many as may wait there, so that none is refused for long."""
    return max(1, min(model.max_queued_requests or MAX_WINDOW, MAX_WINDOW))


def params_for_each(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> Sequence[SamplingParams | None]:
    """One set of sampling parameters for each prompt.

    Raises:
        InvalidRequest: a list was given, of another length than the prompts.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params] * len(prompts)
    if len(params) != len(prompts):
        raise InvalidRequest.of_field(
            "sampling_params", f"{len(params)} given for {len(prompts)} prompts, accepted: one, or one for each prompt"
        )
    return params


def priority_for_each(prompts: Sequence[Prompt], priority: int | Sequence[int]) -> Sequence[int]:
    """One priority for each prompt.

    Raises:
        InvalidRequest: a list was given, of another length than the prompts.
    """
    if not isinstance(priority, Sequence):
        return [priority] * len(prompts)
    if len(priority) != len(prompts):
        raise InvalidRequest.of_field(
            "priority", f"{len(priority)} given for {len(prompts)} prompts, accepted: one, or one for each prompt"
        )
    return priority


async def run_windowed(
    complete: Complete,
    requests: Sequence[tuple[Prompt, SamplingParams | None, int]],
    window: int,
    on_output: Callable[[RequestOutput], None] | None = None,
) -> list[RequestOutput]:
    """Runs the requests in order, at most `window` at a time; answers in the order of the requests.

    The first error cancels the rest and is raised.
    """
    outputs: dict[int, RequestOutput] = {}
    remaining = iter(enumerate(requests))

    async def work() -> None:
        for index, request in remaining:
            output = outputs[index] = await complete(*request)
            if on_output is not None:
                on_output(output)

    workers = [asyncio.ensure_future(work()) for _ in range(min(window, len(requests)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [outputs[index] for index in range(len(requests))]
