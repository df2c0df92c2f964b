"""Reads one tool call in the way a CallSyntax describes."""

import html
import re
from collections.abc import Sequence
from typing import Any

from pagewire_router.parsing.coercion import ToolSchemas
from pagewire_router.parsing.cursor import Cursor, Incomplete, Malformed, Reading, markers
from pagewire_router.parsing.events import Call
from pagewire_router.parsing.syntax import CallSyntax, Field, Maybe, ParameterSyntax, Piece, ToolFormat
from pagewire_router.parsing.values import (
    call_of,
    parse_json,
    read_gemma,
    read_json,
    read_python_calls,
    read_python_lines,
)

_NAME = re.compile(r"[\w.\-:/$]+")
_NAMING_ID = re.compile(r"(?:functions\.)?(?P<name>.+?)(?::\d+)?")
_KEY = re.compile(r"[^<>\"\n]+")


class CallReader:
    """Reads calls of one format from a cursor."""

    def __init__(self, cursor: Cursor, format: ToolFormat, schemas: ToolSchemas) -> None:
        self._cursor = cursor
        self._parameter = format.parameter
        self._openings = tuple(syntax.opening for syntax in format.calls)
        self._schemas = schemas
        self.is_lenient = False
        """Calls count if the text ends before their last literals, but behind their arguments."""

    def offers(self, tool: str) -> bool:
        """Whether the request offers this tool."""
        return tool in self._schemas

    def read(self, syntax: CallSyntax) -> Reading[list[Call]]:
        """Reads a call, or a list of them. Raises Malformed, Incomplete."""
        return (yield from _OneCall(self._cursor, self, syntax).read())

    def read_parameters(self, tool: str, behind: Sequence[str]) -> Reading[dict[str, Any]]:
        """Reads parameters up to behind[0], which is not read.

        behind: the literals that end the call.
        """
        assert self._parameter is not None
        arguments: dict[str, Any] = {}
        while True:
            yield from self._cursor.skip_space()
            found = yield from self._cursor.looking_at(self._parameter.opening, behind[0])
            if found is None:
                raise Malformed
            if found == behind[0]:
                return arguments
            key, type_name = yield from self._read_header(self._parameter)
            text = yield from self._read_value(self._parameter, behind)
            arguments[key] = self._value(tool, key, text, type_name)

    def _read_header(self, syntax: ParameterSyntax) -> Reading[tuple[str, str | None]]:
        """Reads a parameter up to its value: (key, what the format says of the value's type)."""
        key, type_name = "", None
        for index, piece in enumerate(syntax.pieces):
            if piece is Field.VALUE:
                break
            if isinstance(piece, str):
                if index and isinstance(syntax.pieces[index - 1], Field):
                    continue  # Read with the field before it.
                yield from self._cursor.skip_space()
                yield from self._cursor.expect(piece)
                continue
            end = syntax.pieces[index + 1]
            assert isinstance(end, str)
            text = yield from self._cursor.take(_KEY)
            yield from self._cursor.expect(end)
            if not text.strip():
                raise Malformed
            if piece is Field.KEY:
                key = html.unescape(text) if syntax.escapes_keys else text.strip()
            else:
                type_name = {"true": "string", "false": "json"}.get(text, text)
        return key, type_name

    def _read_value(self, syntax: ParameterSyntax, behind: Sequence[str]) -> Reading[str]:
        """Reads the text of a value, and its end unless that is missing."""
        cursor = self._cursor
        start = cursor.position
        if (yield from cursor.at_end()):
            raise Incomplete
        is_framed = syntax.is_framed and cursor.text[start] == "\n"
        ends = markers(syntax.value_end, *((syntax.opening, behind[0]) if syntax.may_lack_end else ()))
        position = start
        while True:
            position, literal = yield from cursor.find(ends, position)
            stands_alone = not is_framed or cursor.text[position - 1] == "\n"
            if literal == syntax.value_end:
                cursor.position = position + len(literal)
                if (yield from self._ends_value(syntax, behind[0])):
                    break
            elif stands_alone and (yield from self._ends_unclosed_value(syntax, behind, position, literal)):
                cursor.position = position
                break
            position += 1
        text = cursor.text[start:position]
        return text.removeprefix("\n").removesuffix("\n") if is_framed else text

    def _ends_value(self, syntax: ParameterSyntax, call_end: str) -> Reading[bool]:
        """Whether the end of a value, which was just read, is followed by what may follow it. If not, it is text."""
        cursor = self._cursor
        position = cursor.position
        yield from cursor.skip_space()
        found = yield from cursor.looking_at(syntax.opening, call_end)
        cursor.position = position
        return found is not None

    def _ends_unclosed_value(
        self, syntax: ParameterSyntax, behind: Sequence[str], position: int, literal: str
    ) -> Reading[bool]:
        """Whether a literal ends the value before it though the value's own end is missing."""
        cursor = self._cursor
        cursor.position = position
        if literal == syntax.opening:
            try:
                yield from self._read_header(syntax)
            except Malformed:
                return False
            return True
        cursor.position += len(literal)
        yield from cursor.skip_space()
        if (yield from cursor.at_end()):
            return len(behind) == 1 or self.is_lenient
        followers = behind[1:2] or self._openings
        return (yield from cursor.looking_at(*followers)) is not None

    def _value(self, tool: str, key: str, text: str, type_name: str | None) -> Any:
        if type_name is None:
            return self._schemas.typed(tool, key, text)
        if type_name == "string":
            return text
        try:
            return parse_json(text)
        except Malformed:
            return self._schemas.typed(tool, key, text)


class _OneCall:
    """A call being read."""

    def __init__(self, cursor: Cursor, reader: CallReader, syntax: CallSyntax) -> None:
        self._cursor = cursor
        self._reader = reader
        self._pieces = syntax.pieces
        self._is_unmarked = syntax.only_at_start
        self._name = ""
        self._id: str | None = None
        self._arguments: dict[str, Any] = {}
        self._calls: list[Call] | None = None

    def read(self) -> Reading[list[Call]]:
        for index, piece in enumerate(self._pieces):
            try:
                yield from self._read_piece(piece, self._pieces[index + 1 :], is_first=index == 0)
            except Incomplete:
                if not self._may_end_before(index):
                    raise
        calls = [Call(self._name, self._arguments, self._id)] if self._calls is None else self._calls
        # JSON without any mark may be an answer.
        if self._is_unmarked and not all(self._reader.offers(call.name) for call in calls):
            raise Malformed
        return calls

    def _may_end_before(self, index: int) -> bool:
        rest = self._pieces[index:]
        if all(isinstance(piece, Maybe) for piece in rest):
            return True
        return self._reader.is_lenient and not any(isinstance(piece, Field) for piece in rest)

    def _read_piece(self, piece: Piece, following: tuple[Piece, ...], *, is_first: bool = False) -> Reading[None]:
        cursor = self._cursor
        if isinstance(piece, str):
            if not is_first:
                yield from cursor.skip_space()
            yield from cursor.expect(piece)
        elif isinstance(piece, Maybe):
            first, *rest = piece.pieces
            assert isinstance(first, str)
            position = cursor.position
            yield from cursor.skip_space()
            if (yield from cursor.accept(first)):
                for inner in rest:
                    yield from self._read_piece(inner, following)
            else:
                cursor.position = position
        else:
            yield from self._read_field(piece, tuple(text for text in following if isinstance(text, str)))

    def _read_field(self, field: Field, behind: tuple[str, ...]) -> Reading[None]:
        cursor = self._cursor
        match field:
            case Field.NAME | Field.ID | Field.INDEX | Field.NAMING_ID:
                yield from self._read_name(field)
            case Field.ARGUMENTS:
                self._set_arguments((yield from read_json(cursor)))
            case Field.GEMMA_ARGUMENTS:
                self._set_arguments((yield from read_gemma(cursor)))
            case Field.CALL:
                self._set_calls([(yield from read_json(cursor))])
            case Field.CALLS:
                value = yield from read_json(cursor)
                self._set_calls(value if isinstance(value, list) else [value])
            case Field.PYTHON_CALLS:
                yield from cursor.skip_space()
                self._calls = yield from read_python_calls(cursor)
            case Field.PYTHON_LINES:
                self._calls = yield from read_python_lines(cursor, behind[0])
            case _:
                assert field is Field.PARAMETERS
                self._arguments = yield from self._reader.read_parameters(self._name, behind)

    def _read_name(self, field: Field) -> Reading[None]:
        yield from self._cursor.skip_space()
        text = yield from self._cursor.take(_NAME)
        if not text:
            yield from self._cursor.at_end()
            if self._cursor.position >= len(self._cursor.text):
                raise Incomplete
            raise Malformed
        if field is Field.NAME:
            self._name = text
        elif field is Field.ID:
            self._id = text
        elif field is Field.NAMING_ID:
            match = _NAMING_ID.fullmatch(text)
            assert match is not None
            self._name, self._id = match["name"], text

    def _set_calls(self, values: list[Any]) -> None:
        self._calls = [call_of(value, needs_arguments=self._is_unmarked) for value in values]

    def _set_arguments(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise Malformed
        self._arguments = value
