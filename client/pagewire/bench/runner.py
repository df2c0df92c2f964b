"""Sends the requests and records the responses, at little cost for the client.

While it runs, a message costs one clock reading and two list appends: the client often shares its cores with the server
it measures, so messages stay undecoded until the last one has arrived.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import grpc.aio

from pagewire.bench.metrics import RequestOutcome
from pagewire.bench.workloads import Prompt
from pagewire.channels import ChannelPool, Connection
from pagewire.prompts import TokensPrompt
from pagewire.sampling_params import SamplingParams
from pagewire.v1 import inference_pb2
from pagewire.wire import RequestOptions, build_request

GENERATE = "/pagewire.v1.Inference/Generate"


@dataclass(slots=True)
class Recording:
    """The messages of one request's stream, as they came."""

    start_s: float = 0.0
    end_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    """Serialized GenerateResponses, one for each entry of times_s."""
    error: str = ""

    def decode(self, origin_s: float) -> RequestOutcome:
        """Reads the messages; times become relative to origin_s."""
        times_s: list[float] = []
        num_tokens: list[int] = []
        texts: list[str] = []
        num_prompt_tokens = num_cached_tokens = 0
        for time_s, payload in zip(self.times_s, self.payloads, strict=True):
            response = inference_pb2.GenerateResponse.FromString(payload)
            match response.WhichOneof("event"):
                case "started":
                    num_prompt_tokens = response.started.num_prompt_tokens
                case "delta":
                    texts.append(response.delta.text)
                    if response.delta.token_ids:
                        times_s.append(time_s - origin_s)
                        num_tokens.append(len(response.delta.token_ids))
                case "finished":
                    num_cached_tokens = response.finished.usage.cached_tokens
        return RequestOutcome(
            start_s=self.start_s - origin_s,
            end_s=self.end_s - origin_s,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
            message_times_s=tuple(times_s),
            message_tokens=tuple(num_tokens),
            text="".join(texts),
            error=self.error,
        )


def serialize(prompt: Prompt, sampling: SamplingParams) -> bytes:
    """Serializes one request ahead of the run.

    Args:
        sampling: sampling parameters, of which max_tokens is replaced by the prompt's.
    """
    content: str | TokensPrompt = (
        prompt.content if isinstance(prompt.content, str) else {"prompt_token_ids": prompt.content}
    )
    params = sampling.clone()
    params.max_tokens = prompt.max_tokens
    return build_request(content, params, RequestOptions()).SerializeToString()


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a run, and when they are sent."""

    requests: Sequence[bytes]
    """Serialized GenerateRequests."""
    arrivals_s: Sequence[float]
    """Seconds from the start of the run, ascending, one for each request."""
    max_concurrency: int | None = None
    """Most requests to have open at a time; further ones wait. None: no limit."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Metadata that is sent with every request."""
    timeout_s: float | None = None
    """Timeout of each request; None: no limit."""


async def offer(
    load: Load, channels: ChannelPool, on_done: Callable[[Recording], None], *, origin_s: float | None = None
) -> tuple[list[RequestOutcome], float]:
    """Sends every request at its time.

    Args:
        on_done: called as each request ends.
        origin_s: perf_counter() at which the run begins; None: now.

    Returns:
        The result of each request, in order, and the duration of the run in seconds. A request that fails is an
        outcome with an error, never an exception, and is not sent again.
    """
    gate = asyncio.Semaphore(load.max_concurrency or max(1, len(load.requests)))
    recordings = [Recording() for _ in load.requests]

    async def send(request: bytes, recording: Recording) -> None:
        async with gate:
            with channels.lease() as connection:
                recording.start_s = perf_counter()
                call = _generate(connection)(request, metadata=load.metadata, timeout=load.timeout_s)
                await _record(call, recording)
        on_done(recording)

    origin_s = perf_counter() if origin_s is None else origin_s
    await asyncio.sleep(origin_s - perf_counter())
    async with asyncio.TaskGroup() as tasks:
        for request, arrival_s, recording in zip(load.requests, load.arrivals_s, recordings, strict=True):
            delay_s = origin_s + arrival_s - perf_counter()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            tasks.create_task(send(request, recording))
    duration_s = perf_counter() - origin_s
    return [recording.decode(origin_s) for recording in recordings], duration_s


def _generate(connection: Connection) -> "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]":
    """Returns the method Inference/Generate without serialization: from bytes to bytes."""
    return connection.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)


async def _record(call: "grpc.aio.UnaryStreamCall[bytes, bytes]", recording: Recording) -> None:
    add_time: Callable[[float], None] = recording.times_s.append
    add_payload: Callable[[Any], None] = recording.payloads.append
    try:
        # read() costs less per message than iteration.
        while (payload := await call.read()) is not grpc.aio.EOF:
            add_time(perf_counter())
            add_payload(payload)
    except grpc.aio.AioRpcError as error:
        recording.error = f"{error.code().name}: {error.details()}"
    recording.end_s = perf_counter()
