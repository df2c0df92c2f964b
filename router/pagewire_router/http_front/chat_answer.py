"""Makes the answers of /v1/chat/completions: whole, or as chunks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.answers import (
    FINISH_REASONS,
    Usage,
    by_sequence,
    completions_of,
    prompt_logprobs_of,
    running_usage,
    stop_reason,
)
from pagewire_router.http_front.chunks import DONE, AnswerOptions, ChunkFormat
from pagewire_router.http_front.event_stream import Outputs
from pagewire_router.http_front.logprobs import LogprobsWriter
from pagewire_router.http_front.turns import Turn, read_output
from pagewire_router.inference import CompletedRequest
from pagewire_router.output.sequence_output import Delta
from pagewire_router.parsing.choice import OutputParsers
from pagewire_router.parsing.events import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallStart


@dataclass(slots=True)
class MessagePart:
    """What events add to a message."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """Each with the part of its arguments that came."""

    @staticmethod
    def of(events: Iterable[Event]) -> "MessagePart":
        """Joins events."""
        part = MessagePart()
        for event in events:
            match event:
                case ContentDelta():
                    part.content += event.text
                case ReasoningDelta():
                    part.reasoning += event.text
                case ToolCallStart():
                    function = {"name": event.name, "arguments": ""}
                    part.tool_calls.append(
                        {"index": event.index, "id": event.id, "type": "function", "function": function}
                    )
                case ToolCallArguments():
                    part._add_arguments(event)
        return part

    def _add_arguments(self, event: ToolCallArguments) -> None:
        if not self.tool_calls or self.tool_calls[-1]["index"] != event.index:
            self.tool_calls.append({"index": event.index, "function": {"arguments": ""}})
        self.tool_calls[-1]["function"]["arguments"] += event.text

    def as_delta(self) -> dict[str, Any]:
        """The fields of a chunk's delta."""
        delta: dict[str, Any] = {"content": self.content} if self.content else {}
        if self.reasoning:
            delta |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        if self.tool_calls:
            delta["tool_calls"] = self.tool_calls
        return delta

    def as_message(self) -> dict[str, Any]:
        """The message of an answer that is no stream."""
        calls = [{key: value for key, value in call.items() if key != "index"} for call in self.tool_calls]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.content if self.content or not calls else None,
            "refusal": None,
            "reasoning_content": self.reasoning or None,
            "reasoning": self.reasoning or None,
        }
        return {**message, "tool_calls": calls} if calls else message


class ChatAnswer:
    """The answer to one request."""

    def __init__(
        self, head: Mapping[str, Any], options: AnswerOptions, turn: Turn, parsers: OutputParsers | None
    ) -> None:
        """head: id, time and model."""
        self.options = options
        self.turn = turn
        self.parsers = parsers
        self.usage = Usage(num_reasoning_tokens=0)
        self._head = head

    async def whole(self, request: CompletedRequest) -> bytes:
        """The body of an answer that is no stream."""
        started = request.started
        self.usage.add_prompt(started)
        choices = []
        for completion in await completions_of(request):
            choice = _Choice(self, completion.index, started)
            events = choice.read(completion, completion.finished)
            self.usage.add_end(completion.finished, choice.num_reasoning_tokens)
            part, described = choice.part(events, completion, completion.finished)
            choices.append({**described, "message": part.as_message()})
        answer = {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage.as_json()}
        if self.options.has_token_ids:
            answer["prompt_token_ids"] = list(started.prompt_token_ids)
        if self.options.has_prompt_logprobs:
            answer["prompt_logprobs"] = LogprobsWriter.for_vllm(await prompt_logprobs_of(request))
        return orjson.dumps(answer)

    def chunks(self, started: inference_pb2.Started) -> "ChatChunks":
        """The maker of chunks."""
        self.usage.add_prompt(started)
        return ChatChunks(self, self._form(), started)

    def end(self) -> bytes:
        """The last events of a stream."""
        return self._form().chunk(None, self.usage.as_json()) + DONE if self.options.has_usage else DONE

    def _form(self) -> ChunkFormat:
        return ChunkFormat({**self._head, "object": "chat.completion.chunk"}, self.options)


class ChatChunks:
    """Makes the chunks of a stream: one for each sequence that has something new or has ended."""

    def __init__(self, answer: ChatAnswer, form: ChunkFormat, started: inference_pb2.Started) -> None:
        self._answer = answer
        self._form = form
        self._started = started
        self._choices = [_Choice(answer, index, started) for index in range(answer.options.num_choices)]
        self._around = [
            form.around(
                b'{"index":%d,"delta":{"content":' % index,
                b'},"logprobs":null,"finish_reason":null,"stop_reason":null}',
            )
            for index in range(answer.options.num_choices)
        ]

    def __call__(self, outputs: Outputs) -> bytes:
        """The events of new outputs."""
        return b"".join([self._event(*each) for each in by_sequence(outputs)])

    def _event(self, index: int, delta: Delta | None, finished: inference_pb2.Finished | None) -> bytes:
        choice = self._choices[index]
        options = self._answer.options
        events = choice.read(delta, finished)
        if finished is not None:
            self._answer.usage.add_end(finished, choice.num_reasoning_tokens)
        elif options.is_plain:
            if not events:  # A character, a stop string or a call may have begun.
                return b""
            if choice.is_begun and len(events) == 1 and isinstance(events[0], ContentDelta):
                before, behind = self._around[index]
                return before + orjson.dumps(events[0].text) + behind
        is_first = not choice.is_begun
        part, described = choice.part(events, delta, finished)
        told = part.as_delta()
        if is_first:
            told = {"role": "assistant", "content": "", **told}
        usage = choice.usage(finished) if options.has_running_usage else None
        more = {}
        if options.has_token_ids and is_first and index == 0:
            more["prompt_token_ids"] = list(self._started.prompt_token_ids)
        if finished is None or not part.tool_calls:
            return self._form.chunk({**described, "delta": told}, usage, **more)
        # The helpers of OpenAI's clients end a call at the first chunk behind it.
        called = {**described, "finish_reason": None, "stop_reason": None, "delta": told}
        end = {name: described[name] for name in ("index", "finish_reason", "stop_reason")}
        end |= {"delta": {}, "logprobs": None}
        return self._form.chunk(called, usage, **more) + self._form.chunk(end, usage)


class _Choice:
    """One sequence, told in one part or in several."""

    def __init__(self, answer: ChatAnswer, index: int, started: inference_pb2.Started) -> None:
        self._options = answer.options
        self._index = index
        self._started = started
        self._reader = answer.turn.reader(answer.parsers, started)
        self._logprobs = LogprobsWriter(as_token_ids=answer.options.names_token_ids)
        self._has_calls = False
        self._num_tokens = 0
        self.is_begun = False

    def read(
        self, output: Delta | inference_pb2.Completion | None, finished: inference_pb2.Finished | None
    ) -> list[Event]:
        """What the next output says."""
        return read_output(self._reader, output, finished)

    def part(
        self,
        events: Iterable[Event],
        output: Delta | inference_pb2.Completion | None,
        finished: inference_pb2.Finished | None,
    ) -> tuple[MessagePart, dict[str, Any]]:
        """The next part of the message, and the fields of the choice beside it."""
        part = MessagePart.of(events)
        self.is_begun = True
        self._has_calls = self._has_calls or bool(part.tool_calls)
        self._num_tokens += 0 if output is None else len(output.token_ids)
        described: dict[str, Any] = {
            "index": self._index,
            "logprobs": None,
            "finish_reason": None if finished is None else self._finish_reason(finished),
            "stop_reason": None if finished is None else stop_reason(finished),
        }
        if self._options.has_logprobs and output is not None:
            described["logprobs"] = self._logprobs.for_chat(output.logprobs)
        if self._options.has_token_ids:
            described["token_ids"] = [] if output is None else list(output.token_ids)
        return part, described

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far."""
        return 0 if self._reader is None else self._reader.num_reasoning_tokens

    def usage(self, finished: inference_pb2.Finished | None) -> dict[str, Any]:
        """Token counts so far."""
        return running_usage(self._started, self._num_tokens, finished, self.num_reasoning_tokens)

    def _finish_reason(self, finished: inference_pb2.Finished) -> str | None:
        reason = FINISH_REASONS.get(finished.finish_reason)
        return "tool_calls" if reason == "stop" and self._has_calls else reason
