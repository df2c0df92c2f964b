"""What the answers of the generating routes have in common: token counts, finish reasons, and running requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pagewire.v1 import inference_pb2

from pagewire_router.admission.call import Call
from pagewire_router.errors import RouterError
from pagewire_router.http_front.chunks import error_event
from pagewire_router.http_front.errors import HttpError, http_error
from pagewire_router.http_front.event_stream import COMMENT, Encode, EventWriter
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.inference import CompletedRequest, GenerateStream, Inference
from pagewire_router.output.output_buffer import Output
from pagewire_router.output.pacer import Pacer
from pagewire_router.output.sequence_output import Delta

T = TypeVar("T")
COMPLETIONS_PER_TURN = 4
"""Sequences of one answer that are taken in one turn of the event loop."""
FINISH_REASONS = {
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
    inference_pb2.FINISH_REASON_ABORT: "abort",
}


@dataclass(slots=True)
class Usage:
    """Token counts of one answer."""

    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_cached_tokens: int = 0
    num_reasoning_tokens: int | None = None
    """None: reasoning is not told apart."""

    def add_prompt(self, started: inference_pb2.Started) -> None:
        """Counts the prompt of a request, once for all of its sequences."""
        self.num_prompt_tokens += started.num_prompt_tokens

    def add_end(self, finished: inference_pb2.Finished, num_reasoning_tokens: int = 0) -> None:
        """Counts a sequence that has ended. Only its first sequence finds a request's prompt in the cache."""
        self.num_completion_tokens += finished.usage.completion_tokens
        if self.num_reasoning_tokens is not None:
            self.num_reasoning_tokens += num_reasoning_tokens
        if finished.index == 0:
            self.num_cached_tokens += finished.usage.cached_tokens

    def as_json(self) -> dict[str, Any]:
        """The usage object of OpenAI's API."""
        return usage_object(
            self.num_prompt_tokens, self.num_completion_tokens, self.num_cached_tokens, self.num_reasoning_tokens
        )


def usage_object(
    num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int | None, num_reasoning_tokens: int | None
) -> dict[str, Any]:
    """The usage object of OpenAI's API.

    Args:
        num_cached_tokens: None: not known yet.
        num_reasoning_tokens: None: reasoning is not told apart.
    """
    usage: dict[str, Any] = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }
    if num_cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": num_cached_tokens}
    if num_reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": num_reasoning_tokens}
    return usage


def running_usage(
    started: inference_pb2.Started,
    num_tokens: int,
    finished: inference_pb2.Finished | None,
    num_reasoning_tokens: int | None = None,
) -> dict[str, Any]:
    """The usage object of a chunk: the counts of its sequence so far.

    Args:
        finished: None: the sequence goes on, and what was cached is told at its end.
    """
    num_cached_tokens = None if finished is None else finished.usage.cached_tokens
    return usage_object(started.num_prompt_tokens, num_tokens, num_cached_tokens, num_reasoning_tokens)


def stop_reason(finished: inference_pb2.Finished) -> str | int | None:
    """What stopped a sequence, as vLLM tells it: the string or the token; None for the model's own end."""
    kind = finished.WhichOneof("stop_reason")
    return None if kind is None else getattr(finished, kind)


def by_sequence(outputs: Sequence[Output]) -> Iterator[tuple[int, Delta | None, inference_pb2.Finished | None]]:
    """Joins the end of a sequence with the delta before it: one chunk tells both. Skips what is told of the prompt."""
    last: Delta | None = None
    for output in outputs:
        if isinstance(output, inference_pb2.PromptLogprobs):
            continue
        if isinstance(output, Delta):
            if last is not None:
                yield last.index, last, None
            last = output
        elif last is not None and last.index == output.index:
            yield output.index, last, output
            last = None
        else:
            if last is not None:
                yield last.index, last, None
                last = None
            yield output.index, None, output
    if last is not None:
        yield last.index, last, None


class Generator:
    """Runs the requests of one call: one for each of its prompts."""

    def __init__(self, inference: Inference, pacer: Pacer) -> None:
        """pacer: paces the writes of streams."""
        self.inference = inference
        self.model = inference.get_model()
        self.fingerprint = f"fp_{self.model.digest.hex()[:16]}"
        """Identifies weights, configuration and tokenizer, as OpenAI's system_fingerprint does."""
        self._pacer = pacer

    async def complete(self, messages: Sequence[inference_pb2.GenerateRequest], call: Call) -> list[CompletedRequest]:
        """Runs all to their ends. Raises RouterError, and aborts the others, if one fails."""
        return await _together(
            self.inference.complete(message, each)
            for message, each in zip(messages, _calls(call, len(messages)), strict=True)
        )

    @asynccontextmanager
    async def stream(
        self, messages: Sequence[inference_pb2.GenerateRequest], call: Call
    ) -> AsyncIterator[list[GenerateStream]]:
        """Begins all. They are aborted if the context ends before their output. Raises RouterError."""
        async with AsyncExitStack() as stack:
            streams: list[GenerateStream] = []
            for message, each in zip(messages, _calls(call, len(messages)), strict=True):
                if streams:
                    await asyncio.sleep(0)  # Other calls have turns meanwhile.
                streams.append(await stack.enter_async_context(self.inference.generate(message, each, self._pacer)))
            yield streams


async def stream_answer(
    exchange: Exchange,
    streams: Sequence[GenerateStream],
    encoders: Sequence[Encode],
    end: Callable[[], bytes],
    fail: Callable[[HttpError], bytes] = error_event,
    sign_of_life: bytes = COMMENT,
) -> None:
    """Answers with the outputs of streams as they come.

    Args:
        encoders: make events of the outputs, one for each stream.
        end: makes the last events.
        fail: makes those of an answer whose request has failed.
        sign_of_life: an event that clients skip.
    """
    events = await exchange.start_events(sign_of_life)
    try:
        try:
            await _together(
                stream.write_to(EventWriter(events, encode)) for stream, encode in zip(streams, encoders, strict=True)
            )
            last = end()
        except RouterError as error:
            last = fail(http_error(error.with_traceback(None), exchange.rename))
        await events.end(last)
    finally:
        events.close()


async def prompt_logprobs_of(request: CompletedRequest) -> list[inference_pb2.TokenLogprobs]:
    """The log-probabilities of a request's prompt, if it asked for them. Other calls have turns meanwhile."""
    entries: list[inference_pb2.TokenLogprobs] = []
    for part in request.prompt_logprobs:
        entries += part.logprobs
        await asyncio.sleep(0)
    return entries


async def completions_of(request: CompletedRequest) -> list[inference_pb2.Completion]:
    """All sequences of a request. Other calls have turns meanwhile."""
    completions = []
    for completion in request.completions:
        completions.append(completion)
        if len(completions) % COMPLETIONS_PER_TURN == 0:
            await asyncio.sleep(0)
    return completions


def _calls(call: Call, number: int) -> list[Call]:
    """The call, for each of its requests. Only the first one is traced: a timeline is about one request."""
    return [call, *([call._replace(trace=None)] * (number - 1))]


async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, which run at the same time. If one fails the others are cancelled."""
    remaining = iter(coroutines)
    first, second = next(remaining), next(remaining, None)
    if second is None:
        return [await first]
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        for coroutine in remaining:
            tasks.append(asyncio.ensure_future(coroutine))
            await asyncio.sleep(0)  # Other calls have turns meanwhile.
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
