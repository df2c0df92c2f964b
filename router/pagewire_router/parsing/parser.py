"""The parser of a model's output: text comes in as it is generated, events go out.

A call is reported as a whole once it is complete, so that output which is cut off, or turns out to be no call after
all, never leaves half a call with the client. What looks like a call but is malformed is content.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagewire_router.parsing.call_reader import CallReader
from pagewire_router.parsing.coercion import ToolSchemas
from pagewire_router.parsing.cursor import Cursor, Incomplete, Malformed, Reading, markers
from pagewire_router.parsing.events import Event, EventCollector, new_call_id
from pagewire_router.parsing.harmony import read_harmony
from pagewire_router.parsing.response_template import ResponseTemplate, TemplateReader
from pagewire_router.parsing.syntax import CallSyntax, ReasoningFormat, ToolFormat


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How a model marks what it writes."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    is_harmony: bool = False
    """The output is gpt-oss's harmony; the other fields are None."""
    template: ResponseTemplate | None = None
    """The model's own description; the other fields are empty."""

    def __bool__(self) -> bool:
        return self != OutputFormat()


class Parser:
    """Takes one output apart. Its events, neighbouring deltas joined, do not depend on how the text is cut."""

    def __init__(
        self,
        format: OutputFormat,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        prompt: str = "",
        hidden: Sequence[str] = (),
        make_call_id: Callable[[], str] = new_call_id,
    ) -> None:
        """
        tools: the tools that the request offers, in OpenAI's form. Without any, text that looks like a call is content.
        prompt: the prompt, or its end: the model may have been put within its reasoning by it.
        hidden: texts of special tokens to leave out of content and reasoning.
        """
        self._cursor = Cursor()
        self._events = EventCollector(make_call_id)
        schemas = ToolSchemas(tools)
        self._reader: CallReader | TemplateReader | None = None
        if format.template is not None:
            self._reader = TemplateReader(self._cursor, self._events, format.template, schemas)
            reading = self._reader.read(prompt)
        elif format.is_harmony:
            reading = read_harmony(self._cursor, self._events, schemas)
        else:
            calls = CallReader(self._cursor, format.tools, schemas) if format.tools is not None and schemas else None
            self._reader = calls
            reading = _Reader(self._cursor, self._events, format, calls, hidden).read(prompt)
        self._reading: Reading[None] | None = reading

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> list[Event]:
        """Takes more text, and returns what became certain.

        token_ids: the tokens of the text, for callers that have them. Formats are told by the text alone, in which the
            marks of all of them stand, so that results are the same without.
        """
        self._cursor.append(text)
        self._advance()
        return self._events.take()

    def finish(self, *, stopped: bool = False) -> list[Event]:
        """Ends the output, and returns what was held back. A call that is not complete is dropped.

        stopped: the model ended its output itself. A call then is complete with its arguments, even if the marks
            behind them are missing.
        """
        if self._reader is not None:
            self._reader.is_lenient = stopped
        self._cursor.ended = True
        self._advance()
        return self._events.take()

    def _advance(self) -> None:
        if self._reading is not None and next(self._reading, self) is self:
            self._reading = None


class _Reader:
    """The grammar of outputs whose reasoning and calls are marked in running text."""

    def __init__(
        self,
        cursor: Cursor,
        events: EventCollector,
        format: OutputFormat,
        reader: CallReader | None,
        hidden: Sequence[str],
    ) -> None:
        self._cursor = cursor
        self._events = events
        self._reasoning = format.reasoning
        self._tools = tools = format.tools if reader is not None else None
        self._reader = reader
        self._is_reasoning = False
        self._at_start = True
        """Nothing but whitespace has come since the output, or the last call, began."""
        self._space = ""
        """Whitespace that is content if content follows."""
        self._strips_front = False
        """Whitespace that comes next is dropped."""
        calls = tools.calls if tools is not None else ()
        self._unmarked = tuple(syntax for syntax in calls if syntax.only_at_start)
        marked = tuple(syntax for syntax in calls if not syntax.only_at_start)
        self._section = tools.section if tools is not None else None
        outside = () if tools is None or tools.only_in_section else marked
        self._syntaxes = {
            opening: tuple(syntax for syntax in marked if syntax.opening == opening)
            for opening in {syntax.opening for syntax in marked}
        }
        self._call_openings = tuple(dict.fromkeys(syntax.opening for syntax in outside)) + (self._section or ())[:1]
        parts = (format.tools, format.reasoning)
        hidden = (*(text for part in parts if part is not None for text in part.hidden), *hidden)
        self._hidden = tuple(text for text in dict.fromkeys(hidden) if text not in self._call_openings)
        self._content_marks = markers(*self._call_openings, *self._hidden)
        if self._reasoning is not None:
            openings = self._call_openings if self._reasoning.may_hold_calls else ()
            self._reasoning_marks = markers(*self._reasoning.closings, *openings, *self._hidden)

    def read(self, prompt: str) -> Reading[None]:
        """Reads the whole output."""
        if self._reasoning is not None and prompt.rstrip().endswith(self._reasoning.opening):
            self._begin_reasoning()
        try:
            while not (yield from self._cursor.at_end()):
                if not self._at_start or self._is_reasoning or not (yield from self._read_start()):
                    yield from self._read_some()
        except Incomplete:  # Of a call
            self._begin_call()
        if self._is_reasoning:
            self._end_reasoning()
        elif not self._at_start:
            self._write(self._space)

    def _read_start(self) -> Reading[bool]:
        """Reads what counts only before any content: the beginning of reasoning, calls without a mark. Returns whether
        there was any.
        """
        cursor = self._cursor
        cursor.forget()
        yield from cursor.skip_space()
        if self._reasoning is not None and (yield from self._accept(self._reasoning.opening)):
            self._begin_reasoning()
            return True
        if self._hidden and (yield from self._accept_hidden()):
            return True
        if self._unmarked and (yield from self._read_unmarked()):
            return True
        cursor.position = 0
        self._at_start = False
        return False

    def _accept(self, literal: str) -> Reading[bool]:
        try:
            return (yield from self._cursor.accept(literal))
        except Incomplete:
            return False

    def _accept_hidden(self) -> Reading[bool]:
        try:
            found = yield from self._cursor.looking_at(*self._hidden, *self._call_openings)
        except Incomplete:
            return False
        if found is None or found in self._call_openings:
            return False
        self._cursor.position += len(found)
        return True

    def _read_some(self) -> Reading[None]:
        """Reads text up to the next mark, and what it marks."""
        cursor = self._cursor
        found = self._reasoning_marks if self._is_reasoning else self._content_marks
        while True:
            cursor.forget()
            cursor.position, literal = found.search(cursor.text, 0, ended=cursor.ended)
            self._text(cursor.text[: cursor.position])
            if literal is not None:
                yield from self._read_mark(literal)
                return
            if cursor.ended:
                return
            yield

    def _read_mark(self, literal: str) -> Reading[None]:
        cursor = self._cursor
        reasoning = self._reasoning
        if reasoning is not None and self._is_reasoning and literal in reasoning.closings:
            cursor.position += len(literal)
            self._end_reasoning()
        elif self._section is not None and literal == self._section[0]:
            yield from self._read_section()
        elif literal in self._syntaxes:
            yield from self._read_call(literal)
        else:
            cursor.position += len(literal)

    # Calls

    def _read_section(self) -> Reading[None]:
        """Reads a section of calls. Text between them is dropped; a section without any call is content."""
        assert self._section is not None
        opening, closing = self._section
        cursor = self._cursor
        cursor.forget()
        cursor.position += len(opening)
        num_calls = self._events.num_calls
        found = markers(closing, *self._syntaxes)
        while True:
            position, literal = yield from cursor.find(found, cursor.position)
            cursor.position = position
            if literal == closing:
                break
            if not (yield from self._try_call(self._syntaxes[literal])):
                cursor.position += len(literal)
        cursor.position += len(closing)
        if num_calls == self._events.num_calls and cursor.text[len(opening) : position].strip():
            self._text(cursor.text[: cursor.position])
        else:
            self._begin_call()

    def _read_call(self, opening: str) -> Reading[None]:
        if not (yield from self._try_call(self._syntaxes[opening])):
            self._text(opening)
            self._cursor.position += len(opening)

    def _try_call(self, syntaxes: Sequence[CallSyntax]) -> Reading[bool]:
        """Reads a call in the first of these ways in which one comes next; returns whether there is one."""
        assert self._reader is not None
        start = self._cursor.position
        incomplete = False
        for syntax in syntaxes:
            try:
                calls = yield from self._reader.read(syntax)
            except Malformed:
                self._cursor.position = start
            except Incomplete:
                self._cursor.position = start
                incomplete = True
            else:
                self._begin_call()
                for call in calls:
                    self._events.call(call)
                return True
        if incomplete:
            raise Incomplete
        return False

    def _begin_call(self) -> None:
        """Ends the content or reasoning before a call."""
        if self._is_reasoning:
            self._end_reasoning()
            self._strips_front = False
        elif self._tools is not None and not self._tools.strips_content:
            self._write(self._space)
        self._space = ""
        self._at_start = True

    def _read_unmarked(self) -> Reading[bool]:
        """Reads a call that has no mark of its own, if one comes next; returns whether there is one."""
        assert self._tools is not None
        cursor = self._cursor
        if self._tools.separator and self._events.num_calls and (yield from self._accept(self._tools.separator)):
            yield from cursor.skip_space()
        if (yield from cursor.at_end()):
            return False
        opening = cursor.text[cursor.position]
        syntaxes = [syntax for syntax in self._unmarked if syntax.opening == opening]
        return bool(syntaxes) and (yield from self._try_call(syntaxes))

    # Text

    def _begin_reasoning(self) -> None:
        assert self._reasoning is not None
        self._is_reasoning = True
        self._space = ""
        self._strips_front = self._reasoning.strips

    def _end_reasoning(self) -> None:
        assert self._reasoning is not None
        self._is_reasoning = False
        if not self._reasoning.strips:  # The space belongs to it.
            self._events.reasoning(self._space)
        self._space = ""
        self._at_start = True
        self._strips_front = self._reasoning.strips

    def _text(self, text: str) -> None:
        """Takes text of the content or reasoning."""
        if not text:
            return
        if self._strips_front:
            text = text.lstrip()
            if not text:
                return
            self._strips_front = False
        body = text.rstrip()
        if not body:
            self._space += text
            return
        self._write(self._space + body)
        self._space = text[len(body) :]
        self._at_start = False

    def _write(self, text: str) -> None:
        if self._is_reasoning:
            self._events.reasoning(text)
        else:
            self._events.content(text)
