"""What a parser reports, and the collector that its grammars write to."""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More text of the reasoning before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins."""

    index: int
    """Position among the calls of this output, from 0."""
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments. All of a call's joined are one JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call is complete."""

    index: int


Event = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments | ToolCallEnd


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as read from the output."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None
    """The id that the model gave it; None: it gave none."""


def new_call_id() -> str:
    """A random id in the form of OpenAI's."""
    return f"call_{secrets.token_hex(12)}"


def _is_sendable(text: str) -> bool:
    """Whether the text has an encoding: not if there is half of a surrogate pair in it, which JSON can escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class EventCollector:
    """Collects the events of one output. Neighbouring deltas of a kind are joined."""

    def __init__(self, make_call_id: Callable[[], str] = new_call_id) -> None:
        self.num_calls = 0
        self._make_call_id = make_call_id
        self._events: list[Event] = []

    def content(self, text: str) -> None:
        """Adds text of the answer."""
        if not text:
            return
        if self._events and isinstance(last := self._events[-1], ContentDelta):
            self._events[-1] = ContentDelta(last.text + text)
        else:
            self._events.append(ContentDelta(text))

    def reasoning(self, text: str) -> None:
        """Adds text of the reasoning."""
        if not text:
            return
        if self._events and isinstance(last := self._events[-1], ReasoningDelta):
            self._events[-1] = ReasoningDelta(last.text + text)
        else:
            self._events.append(ReasoningDelta(text))

    def call(self, call: Call) -> None:
        """Adds a complete call."""
        index = self.num_calls
        self.num_calls += 1
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        if not _is_sendable(arguments):
            arguments = json.dumps(call.arguments)
        self._events += (
            ToolCallStart(index, call.id or self._make_call_id(), call.name),
            ToolCallArguments(index, arguments),
            ToolCallEnd(index),
        )

    def take(self) -> list[Event]:
        """Returns the events since the last call of this."""
        events, self._events = self._events, []
        return events
