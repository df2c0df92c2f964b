"""One turn of a conversation: the request that it takes, and how its output is read.

All routes of conversations bring theirs into this form, with messages and tools as OpenAI's API has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from pagewire.parameter_table import MAX_INT32
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.body import is_nested_deeply
from pagewire_router.http_front.errors import wrong
from pagewire_router.output.sequence_output import Delta
from pagewire_router.parsing.choice import OutputParsers
from pagewire_router.parsing.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    new_call_id,
)
from pagewire_router.parsing.parser import Parser
from pagewire_router.parsing.reasoning_tokens import ReasoningTokens

AUTO, NONE, REQUIRED = "auto", "none", "required"
MAX_PARTS = 1 << 16
"""Most messages, tools or documents of a conversation."""
_PARTS = ("messages", "input", "tools", "documents")


class OutputReader(Protocol):
    """Takes the text of one sequence apart."""

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far."""

    def feed(self, text: str, token_ids: Sequence[int]) -> Sequence[Event]:
        """Takes more text, and the tokens that came with it."""

    def finish(self, *, stopped: bool) -> Sequence[Event]:
        """Ends the text. stopped: the model ended it itself."""


def read_output(
    reader: OutputReader | None,
    output: Delta | inference_pb2.Completion | None,
    finished: inference_pb2.Finished | None,
) -> list[Event]:
    """What the next output of a sequence says. reader: None: all of its text is content."""
    text = "" if output is None else output.text
    if reader is None:
        return [ContentDelta(text)] if text else []
    events = [] if output is None else list(reader.feed(text, output.token_ids))
    if finished is not None:
        events += reader.finish(stopped=finished.finish_reason == inference_pb2.FINISH_REASON_STOP)
    return events


def check_num_parts(values: Mapping[str, Any], max_model_len: int) -> None:
    """Refuses more messages and tools than the context has tokens, before they are walked. Raises HttpError."""
    accepted = min(max_model_len, MAX_PARTS)
    for name in _PARTS:
        parts = values.get(name)
        if isinstance(parts, list) and len(parts) > accepted:
            raise wrong(name, f"holds {len(parts)} entries; accepted: up to {accepted}")


@dataclass(slots=True)
class Turn:
    """What a client asks for with a conversation."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = AUTO
    """AUTO, NONE, REQUIRED, or the name of the tool that must be called."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    has_reasoning: bool = True
    """Tells the reasoning; otherwise it is left out of the answer."""
    allows_parallel_calls: bool = True
    skips_special_tokens: bool = True
    calls_are_marked: bool = False
    """A call that must be made is made in the model's own format."""

    def fill_chat(self, chat: inference_pb2.ChatPrompt) -> None:
        """Sets messages, tools and variables of a prompt."""
        chat.SetInParent()
        for message in self.messages:
            chat.messages.add(json=orjson.dumps(_with_parsed_arguments(message)).decode())
        if self.tools and self.tool_choice != NONE:
            chat.tools_json = orjson.dumps(self.tools).decode()
        if self.template_kwargs:
            chat.template_kwargs_json = orjson.dumps(self.template_kwargs).decode()

    def fill(
        self, request: inference_pb2.GenerateRequest, model: inference_pb2.Model, parsers: OutputParsers | None
    ) -> None:
        """Sets prompt and constraint of a request that has its sampling parameters. Raises HttpError.

        parsers: those of the reader; None: outputs are content.
        """
        params = request.sampling_params
        self.fill_chat(request.chat)
        if not params.HasField("max_tokens") and not model.default_sampling_params.HasField("max_tokens"):
            params.max_tokens = MAX_INT32
        if self.is_forced:
            if params.HasField("structured_outputs"):
                raise wrong("tool_choice", "asks for a call, and response_format for something else; choose one")
            self._constrain(params.structured_outputs, parsers)
        if parsers is not None and params.HasField("structured_outputs"):
            parsers.let_reason(params.structured_outputs, is_call=self.calls_are_marked)
        if parsers is not None and (self.is_parsed or parsers.reasoning_marks is not None):
            # Marks of reasoning and calls may be special tokens.
            self.skips_special_tokens = not params.HasField("skip_special_tokens") or params.skip_special_tokens
            params.skip_special_tokens = False
            request.return_prompt_token_ids = True

    def _constrain(self, outputs: inference_pb2.StructuredOutputs, parsers: OutputParsers | None) -> None:
        """Sets what makes the output a call: in the model's own format if that can be, or as JSON."""
        name = None if self.tool_choice == REQUIRED else self.tool_choice
        is_single = name is not None or not self.allows_parallel_calls
        own = None if parsers is None else parsers.constraint(self.tools, name=name, max_calls=1 if is_single else None)
        self.calls_are_marked = own is not None
        if own is not None:
            outputs.CopyFrom(own)
            return
        outputs.json = orjson.dumps(self._call_schema()).decode()
        # Where whitespace is free some models write nothing else.
        outputs.disable_any_whitespace = True

    @property
    def is_parsed(self) -> bool:
        """Whether calls have the marks of the model's own format."""
        return not self.is_forced or self.calls_are_marked

    @property
    def is_forced(self) -> bool:
        """Whether the output must be a call."""
        return self.tool_choice not in (AUTO, NONE)

    def reader(self, parsers: OutputParsers | None, started: inference_pb2.Started) -> OutputReader | None:
        """The reader of one sequence; None: all of its text is content."""
        if not self.is_parsed:
            return self._forced_call(parsers, started)
        if not parsers:
            return None
        tools = [] if self.tool_choice == NONE else self.tools
        parser = parsers.new(tools=tools, prompt=started.prompt_text, skip_special_tokens=self.skips_special_tokens)
        return _Reader(parser, parsers.reasoning_tokens(prompt=started.prompt_text), self)

    def _forced_call(self, parsers: OutputParsers | None, started: inference_pb2.Started) -> OutputReader:
        """The reader of a call that is made as JSON, which may stand behind reasoning."""
        call = _ForcedCall(None if self.tool_choice == REQUIRED else self.tool_choice)
        if parsers is None or parsers.reasoning_marks is None:
            return call
        parser = parsers.reasoning_reader(prompt=started.prompt_text)
        return _ReaderBehindReasoning(parser, parsers.reasoning_tokens(prompt=started.prompt_text), self, call)

    def _call_schema(self) -> dict[str, Any]:
        """JSON schema of the output: the arguments of the one tool, or a list of calls."""
        functions = [tool["function"] for tool in self.tools]
        if self.tool_choice != REQUIRED:
            return next(_parameters(function) for function in functions if function["name"] == self.tool_choice)
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "parameters": _parameters(function)},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for function in functions
        ]
        schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
        return schema if self.allows_parallel_calls else {**schema, "maxItems": 1}


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] | None = function.get("parameters")
    return given or {"type": "object", "properties": {}, "additionalProperties": False}


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """The message with arguments of calls as objects: templates write them out, clients send them as text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_parsed(call) for call in calls]}


def _with_parsed(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        parsed = orjson.loads(arguments) if arguments.strip() else {}
    except orjson.JSONDecodeError:
        return call  # The model may have written it.
    if is_nested_deeply(parsed):
        return call
    return {**call, "function": {**function, "arguments": parsed}}


class _Reader:
    """Reads an output by the model's format, and counts its reasoning."""

    def __init__(self, parser: Parser, reasoning: ReasoningTokens, turn: Turn) -> None:
        self._parser = parser
        self._reasoning = reasoning
        self._turn = turn

    @property
    def num_reasoning_tokens(self) -> int:
        """See OutputReader."""
        return self._reasoning.num

    def feed(self, text: str, token_ids: Sequence[int]) -> Sequence[Event]:
        """See OutputReader."""
        events = self._parser.feed(text) if text else []
        self._reasoning.add(text, token_ids, events)
        return self._told(events)

    def finish(self, *, stopped: bool) -> Sequence[Event]:
        """See OutputReader."""
        return self._told(self._parser.finish(stopped=stopped))

    def _told(self, events: Sequence[Event]) -> Sequence[Event]:
        """Leaves out what the client does not want to be told."""
        turn = self._turn
        if turn.has_reasoning and turn.allows_parallel_calls:
            return events
        return [event for event in events if self._is_told(event)]

    def _is_told(self, event: Event) -> bool:
        match event:
            case ReasoningDelta():
                return self._turn.has_reasoning
            case ToolCallStart() | ToolCallArguments() | ToolCallEnd():
                return event.index == 0 or self._turn.allows_parallel_calls
        return True


class _ReaderBehindReasoning(_Reader):
    """Reads an output whose content is a call in another form than the model's own."""

    def __init__(self, parser: Parser, reasoning: ReasoningTokens, turn: Turn, call: "_ForcedCall") -> None:
        """parser: tells reasoning from content."""
        super().__init__(parser, reasoning, turn)
        self._call = call

    def finish(self, *, stopped: bool) -> Sequence[Event]:
        """See OutputReader."""
        return [*super().finish(stopped=stopped), *self._call.finish(stopped=stopped)]

    def _told(self, events: Sequence[Event]) -> Sequence[Event]:
        told: list[Event] = []
        for event in super()._told(events):
            told += self._call.feed(event.text, ()) if isinstance(event, ContentDelta) else (event,)
        return told


class _ForcedCall:
    """Reads an output that is constrained to be a call, or a list of calls."""

    num_reasoning_tokens = 0
    """See OutputReader."""

    def __init__(self, name: str | None) -> None:
        """name: the tool whose arguments the output is; None: it is a list of calls."""
        self._name = name
        self._text = ""
        self._is_begun = False

    def feed(self, text: str, token_ids: Sequence[int]) -> Sequence[Event]:
        """See OutputReader."""
        if not text:
            return ()
        if self._name is None:
            self._text += text
            return ()
        events: list[Event] = []
        if not self._is_begun:
            self._is_begun = True
            events.append(ToolCallStart(0, new_call_id(), self._name))
        return [*events, ToolCallArguments(0, text)]

    def finish(self, *, stopped: bool) -> Sequence[Event]:
        """See OutputReader. A list that is cut off is content."""
        if self._name is not None:
            return (ToolCallEnd(0),) if self._is_begun else ()
        try:
            calls = orjson.loads(self._text)
            events: list[Event] = []
            for index, call in enumerate(calls):
                arguments = orjson.dumps(call["parameters"]).decode()
                start = ToolCallStart(index, new_call_id(), call["name"])
                events += (start, ToolCallArguments(index, arguments), ToolCallEnd(index))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return (ContentDelta(self._text),) if self._text else ()
        return events
