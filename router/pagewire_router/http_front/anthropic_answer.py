"""Makes the answers of /v1/messages: whole, or as events."""

from typing import Any

import orjson
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.answers import by_sequence, completions_of
from pagewire_router.http_front.chat_answer import MessagePart
from pagewire_router.http_front.event_stream import Outputs
from pagewire_router.http_front.turns import OutputReader, read_output
from pagewire_router.inference import CompletedRequest
from pagewire_router.parsing.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)


def event(kind: str, **fields: Any) -> bytes:
    """A named event."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _input_of(arguments: str) -> Any:
    """The input of a tool; empty if max_tokens has cut it off, which stop_reason then says."""
    try:
        return orjson.loads(arguments or b"{}")
    except orjson.JSONDecodeError:
        return {}


class AnthropicAnswer:
    """The answer to one request."""

    def __init__(self, head: dict[str, Any], reader: OutputReader | None, started: inference_pb2.Started) -> None:
        """
        Args:
            head: id and model.
            reader: reads the output; None: all of it is text.
        """
        self._message = {**head, "type": "message", "role": "assistant"}
        self._reader = reader
        self._num_prompt_tokens = started.num_prompt_tokens
        self._has_calls = False

    async def whole(self, request: CompletedRequest) -> bytes:
        """The body of an answer that is no stream."""
        (completion,) = await completions_of(request)
        part = MessagePart.of(read_output(self._reader, completion, completion.finished))
        self._has_calls = bool(part.tool_calls)
        blocks: list[dict[str, Any]] = []
        if part.reasoning:
            blocks.append({"type": "thinking", "thinking": part.reasoning, "signature": ""})
        if part.content:
            blocks.append({"type": "text", "text": part.content})
        for call in part.tool_calls:
            function = call["function"]
            given = _input_of(function["arguments"])
            blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": given})
        ended = {**self._stop(completion.finished), "usage": self._usage(completion.finished)}
        return orjson.dumps({**self._message, "content": blocks, **ended})

    def events(self) -> "AnthropicEvents":
        """The maker of events."""
        return AnthropicEvents(self)

    def begin(self) -> bytes:
        """The first event."""
        usage = {"input_tokens": self._num_prompt_tokens, "output_tokens": 0}
        message = {**self._message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return event("message_start", message=message)

    def end(self, finished: inference_pb2.Finished) -> bytes:
        """The last events."""
        return event("message_delta", delta=self._stop(finished), usage=self._usage(finished)) + event("message_stop")

    def read(self, output: Any, finished: inference_pb2.Finished | None) -> list[Event]:
        """What the next output says."""
        events = read_output(self._reader, output, finished)
        self._has_calls = self._has_calls or any(isinstance(each, ToolCallStart) for each in events)
        return events

    def _stop(self, finished: inference_pb2.Finished) -> dict[str, Any]:
        reason = "end_turn"
        if finished.finish_reason == inference_pb2.FINISH_REASON_LENGTH:
            reason = "max_tokens"
        elif self._has_calls:
            reason = "tool_use"
        elif finished.HasField("stop_string"):
            return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop_string}
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self, finished: inference_pb2.Finished) -> dict[str, int]:
        usage = finished.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }


class AnthropicEvents:
    """Makes the events of a stream: a message is a row of blocks, each begun, continued and ended."""

    def __init__(self, answer: AnthropicAnswer) -> None:
        self._answer = answer
        self._index = -1
        self._open: str | None = None
        """Type of the block that is begun and not ended; None: there is none."""
        self._is_begun = False

    def __call__(self, outputs: Outputs) -> bytes:
        """The events of new outputs."""
        parts = []
        if not self._is_begun:
            self._is_begun = True
            parts.append(self._answer.begin())
        for _, delta, finished in by_sequence(outputs):
            parts += map(self._event, self._answer.read(delta, finished))
            if finished is not None:
                parts += [self._end_block(), self._answer.end(finished)]
        return b"".join(parts)

    def _event(self, told: Event) -> bytes:
        match told:
            case ContentDelta():
                return self._begin("text", text="") + self._delta("text_delta", text=told.text)
            case ReasoningDelta():
                begun = self._begin("thinking", thinking="", signature="")
                return begun + self._delta("thinking_delta", thinking=told.text)
            case ToolCallStart():
                return self._end_block() + self._begin("tool_use", id=told.id, name=told.name, input={})
            case ToolCallArguments():
                return self._delta("input_json_delta", partial_json=told.text)
            case ToolCallEnd():
                return self._end_block()

    def _begin(self, kind: str, **fields: Any) -> bytes:
        """Begins a block, unless one of the kind is open."""
        if self._open == kind:
            return b""
        ended = self._end_block()
        self._open = kind
        self._index += 1
        return ended + event("content_block_start", index=self._index, content_block={"type": kind, **fields})

    def _delta(self, kind: str, **fields: str) -> bytes:
        return event("content_block_delta", index=self._index, delta={"type": kind, **fields})

    def _end_block(self) -> bytes:
        if self._open is None:
            return b""
        signed = self._delta("signature_delta", signature="") if self._open == "thinking" else b""
        self._open = None
        return signed + event("content_block_stop", index=self._index)
