"""How a format is described: literals, and fields between them.

A format is data. `call_reader.py` reads what it describes, `constraints.py` makes grammars of it.
"""

from dataclasses import dataclass
from enum import Enum


class Field(Enum):
    """What may stand between the literals of a tool call."""

    NAME = "name"
    """The tool's name."""
    ID = "id"
    """The call's id."""
    INDEX = "index"
    """The number of the call, which says nothing."""
    NAMING_ID = "naming id"
    """An id that holds the tool's name, as Kimi's `functions.get_weather:0` does."""
    ARGUMENTS = "arguments"
    """A JSON object of arguments."""
    CALL = "call"
    """A JSON object with name and arguments."""
    CALLS = "calls"
    """A JSON list of such objects, or one of them."""
    PARAMETERS = "parameters"
    """Any number of parameters in the format's ParameterSyntax."""
    GEMMA_ARGUMENTS = "gemma arguments"
    """An object of arguments in Gemma's dialect of JSON."""
    PYTHON_CALLS = "python calls"
    """A list of calls in Python's notation."""
    PYTHON_LINES = "python lines"
    """A call in Python's notation on each line, up to the literal that follows."""
    KEY = "key"
    """Of a parameter: its name."""
    VALUE = "value"
    """Of a parameter: its value, up to the literal that follows."""
    TYPE = "type"
    """Of a parameter: the JSON type of the value."""
    IS_STRING = "is string"
    """Of a parameter: "true" if the value is text, "false" if it is JSON."""


@dataclass(frozen=True, slots=True)
class Maybe:
    """Pieces that may be left out."""

    pieces: tuple[str | Field, ...]


Piece = str | Field | Maybe


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """One way to write a tool call. Whitespace may stand before every literal but the first."""

    pieces: tuple[Piece, ...]
    only_at_start: bool = False
    """Counts only where no content has come since the output or the last call began, since it has no mark of its own:
    plain JSON, a list."""

    @property
    def opening(self) -> str:
        """The literal by which a call is noticed. Of calls that begin with JSON or a list: the bracket."""
        first = self.pieces[0]
        if isinstance(first, str):
            return first
        return "[" if first in (Field.PYTHON_CALLS, Field.CALLS) else "{"


@dataclass(frozen=True, slots=True)
class ParameterSyntax:
    """How one parameter of a call is written."""

    pieces: tuple[str | Field, ...]
    is_framed: bool = False
    """The value stands on lines of its own: one line break before it and one behind it are not part of it."""
    may_lack_end: bool = False
    """The next parameter or the end of the call also ends the value, if its own end is missing."""
    escapes_keys: bool = False
    """Keys are escaped as in HTML."""

    @property
    def opening(self) -> str:
        """The literal that begins a parameter."""
        assert isinstance(self.pieces[0], str)
        return self.pieces[0]

    @property
    def value_end(self) -> str:
        """The literal behind the value."""
        end = self.pieces[self.pieces.index(Field.VALUE) + 1]
        assert isinstance(end, str)
        return end


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How tool calls are written."""

    name: str
    calls: tuple[CallSyntax, ...]
    """Tried in this order."""
    parameter: ParameterSyntax | None = None
    section: tuple[str, str] | None = None
    """What opens and closes the part of the output that holds the calls."""
    only_in_section: bool = False
    """A call outside of a section is text."""
    forced_call: int = 0
    """Index of the way to write a call that a model is held to if it must call a tool."""
    separator: str = ""
    """Stands between calls that have no mark of their own."""
    strips_content: bool = True
    """Whitespace between content and a call is no content."""
    hidden: tuple[str, ...] = ()
    """Literals that are left out of content and reasoning."""
    aliases: tuple[str, ...] = ()
    """Other names, such as vLLM's."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How reasoning is marked."""

    name: str
    opening: str
    closings: tuple[str, ...]
    strips: bool = True
    """Whitespace around the reasoning is part of neither it nor the content."""
    may_hold_calls: bool = True
    """A tool call within the reasoning ends it."""
    hidden: tuple[str, ...] = ()
    """Literals that are left out of content and reasoning."""
    aliases: tuple[str, ...] = ()
    """Other names, such as vLLM's."""
