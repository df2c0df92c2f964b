"""The grammar of gpt-oss's output, harmony: a sequence of messages.

A message is `<|start|>role<|channel|>channel<|message|>text<|end|>`. The header also names who a tool call is for, as
`to=functions.NAME` in its role or its channel. The prompt ends with the start of the first header, and the token that
ends a call or the answer is not part of the output.
"""

import re
from collections.abc import Callable

from pagewire_router.parsing.coercion import ToolSchemas
from pagewire_router.parsing.cursor import Cursor, Incomplete, Malformed, Reading, markers
from pagewire_router.parsing.events import Call, EventCollector
from pagewire_router.parsing.values import read_json

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_HEADER_MARKS = markers(_START, _MESSAGE, *_ENDS)
_BODY_MARKS = markers(*_ENDS)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."


def read_harmony(cursor: Cursor, events: EventCollector, schemas: ToolSchemas) -> Reading[None]:
    """Reads the whole output."""
    try:
        while True:
            yield from _read_message(cursor, events, has_tools=bool(schemas))
    except Incomplete:
        pass


def _read_message(cursor: Cursor, events: EventCollector, *, has_tools: bool) -> Reading[None]:
    cursor.forget()
    position, mark = yield from cursor.find(_HEADER_MARKS, 0)
    header = cursor.text[:position]
    cursor.position = position + len(mark)
    if mark != _MESSAGE:  # A header that is broken off.
        return
    recipient = _RECIPIENT.search(header)
    channel = header.rpartition(_CHANNEL)[2].split()[:1]
    if recipient is None or recipient[1] == "assistant":
        is_reasoning = channel == ["analysis"]
        yield from _read_text(cursor, events.reasoning if is_reasoning else events.content)
    elif recipient[1].startswith(_FUNCTIONS) and has_tools:
        yield from _read_call(cursor, events, recipient[1].removeprefix(_FUNCTIONS))
    else:  # A built-in tool, which nobody here runs.
        yield from _read_text(cursor, lambda _: None)


def _read_call(cursor: Cursor, events: EventCollector, name: str) -> Reading[None]:
    cursor.forget()
    try:
        arguments = yield from read_json(cursor)
        if not isinstance(arguments, dict):
            raise Malformed
    except Malformed:
        cursor.position = 0
        yield from _read_text(cursor, events.content)
        return
    events.call(Call(name, arguments))


def _read_text(cursor: Cursor, write: Callable[[str], None]) -> Reading[None]:
    """Reads the text of a message. What looks like its end is text, unless another message follows or nothing does."""
    while True:
        cursor.forget()
        position, mark = _BODY_MARKS.search(cursor.text, 0, ended=cursor.ended)
        write(cursor.text[:position])
        cursor.position = position
        if mark is not None:
            cursor.position += len(mark)
            if (yield from cursor.at_end()) or (yield from _follows(cursor)):
                return
            write(mark)
        elif cursor.ended:
            raise Incomplete
        else:
            yield


def _follows(cursor: Cursor) -> Reading[bool]:
    try:
        return (yield from cursor.looking_at(_START)) is not None
    except Incomplete:
        return False
