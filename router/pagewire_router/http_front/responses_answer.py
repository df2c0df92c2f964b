"""Makes the answers of /v1/responses: whole, or as events. An output is a row of items: reasoning, message, calls."""

import time
from collections.abc import Iterator
from typing import Any

import orjson
from pagewire.v1 import inference_pb2
from pagewire.v1.inference_pb2 import Finished

from pagewire_router.http_front.answers import by_sequence, completions_of
from pagewire_router.http_front.errors import HttpError
from pagewire_router.http_front.event_stream import Outputs
from pagewire_router.http_front.logprobs import LogprobsWriter
from pagewire_router.http_front.turns import OutputReader, read_output
from pagewire_router.inference import CompletedRequest
from pagewire_router.output.sequence_output import Delta
from pagewire_router.parsing.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)

ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "reasoning": None,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
    "user": None,
}
"""Fields of a request that its answer repeats, and what absent ones are."""
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
"""What ids of items begin with, by type. Clients tell by them whose ids they are."""


class ResponseAnswer:
    """The answer to one request."""

    def __init__(
        self, response_id: str, model: str, values: dict[str, Any], reader: OutputReader | None, *, has_logprobs: bool
    ) -> None:
        """
        Args:
            values: the fields of the request.
            reader: reads the output; None: all of it is text.
        """
        self._id = response_id
        self._head = {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "store": False,
            "previous_response_id": None,
            **{name: values.get(name, default) for name, default in ECHOED.items()},
        }
        self._reader = reader
        self._logprobs = LogprobsWriter(as_token_ids=False) if has_logprobs else None
        self._items: list[dict[str, Any]] = []
        self._is_open = False
        """The last item has not ended."""
        self._number = 0
        """Of the next event."""

    async def whole(self, request: CompletedRequest) -> bytes:
        """The body of an answer that is no stream."""
        (completion,) = await completions_of(request)
        for _ in self._outputs(completion, completion.finished):
            pass
        return orjson.dumps(self._ended(completion.finished))

    def __call__(self, outputs: Outputs) -> bytes:
        """The events of new outputs."""
        parts = []
        if self._number == 0:
            begun = self._response("in_progress")
            parts += [self._event("response.created", response=begun)]
            parts += [self._event("response.in_progress", response=begun)]
        for _, delta, finished in by_sequence(outputs):
            parts += self._outputs(delta, finished)
            if finished is not None:
                response = self._ended(finished)
                parts.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(parts)

    def failed(self, error: HttpError) -> bytes:
        """The last event of a stream whose request has failed."""
        told = {"code": error.code or "server_error", "message": error.message}
        return self._event("response.failed", response={**self._response("failed"), "error": told})

    def _outputs(self, output: Delta | inference_pb2.Completion | None, finished: Finished | None) -> Iterator[bytes]:
        """The events of one output of the sequence."""
        logprobs: list[dict[str, Any]] = []
        if self._logprobs is not None and output is not None:
            logprobs = self._logprobs.for_chat(output.logprobs)["content"]
        for event in read_output(self._reader, output, finished):
            yield from self._take(event, logprobs)
        if finished is not None:
            yield from self._end_item()

    def _take(self, event: Event, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        match event:
            case ContentDelta():
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield from self._begin_text("message", part, role="assistant")
                open_part = self._items[-1]["content"][0]
                open_part["text"] += event.text
                open_part["logprobs"] += logprobs
                told = {"content_index": 0, "delta": event.text, "logprobs": logprobs}
                yield self._item_event("response.output_text.delta", **told)
            case ReasoningDelta():
                yield from self._begin_text("reasoning", {"type": "reasoning_text", "text": ""}, summary=[])
                self._items[-1]["content"][0]["text"] += event.text
                yield self._item_event("response.reasoning_text.delta", content_index=0, delta=event.text)
            case ToolCallStart():
                yield from self._end_item()
                yield self._begin("function_call", call_id=event.id, name=event.name, arguments="")
            case ToolCallArguments():
                self._items[-1]["arguments"] += event.text
                yield self._item_event("response.function_call_arguments.delta", delta=event.text)
            case ToolCallEnd():
                yield from self._end_item()

    def _begin(self, kind: str, **fields: Any) -> bytes:
        item_id = f"{_PREFIXES[kind]}_{self._id}_{len(self._items)}"
        item = {"id": item_id, "type": kind, "status": "in_progress", **fields}
        self._items.append(item)
        self._is_open = True
        return self._item_event("response.output_item.added", item_id=None, item=item)

    def _begin_text(self, kind: str, part: dict[str, Any], **fields: Any) -> Iterator[bytes]:
        """Begins an item that is a text, unless one of the kind is open."""
        if self._is_open and self._items[-1]["type"] == kind:
            return
        yield from self._end_item()
        yield self._begin(kind, content=[], **fields)
        self._items[-1]["content"].append(part)
        yield self._item_event("response.content_part.added", content_index=0, part=part)

    def _end_item(self) -> Iterator[bytes]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        item["status"] = "completed"
        if item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._item_event("response.function_call_arguments.done", **told)
        else:
            part = item["content"][0]
            told = {"content_index": 0, "text": part["text"]}
            if part["type"] == "output_text":
                told["logprobs"] = part["logprobs"]
            yield self._item_event(f"response.{part['type']}.done", **told)
            yield self._item_event("response.content_part.done", content_index=0, part=part)
        yield self._item_event("response.output_item.done", item_id=None, item=item)

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        """An event about the last item."""
        named = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, **fields}
        return self._event(kind, **{name: value for name, value in named.items() if value is not None})

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        data = orjson.dumps({"type": kind, "sequence_number": self._number - 1, **fields})
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)

    def _response(self, status: str) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": self._items,
            "usage": None,
        }

    def _ended(self, finished: Finished) -> dict[str, Any]:
        """The response when its sequence has ended."""
        is_cut = finished.finish_reason == inference_pb2.FINISH_REASON_LENGTH
        usage = finished.usage
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {
                "reasoning_tokens": 0 if self._reader is None else self._reader.num_reasoning_tokens
            },
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return {
            **self._response("incomplete" if is_cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": counts,
        }
