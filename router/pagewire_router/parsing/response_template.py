"""The `response_template` that a model's tokenizer_config.json may have, in Hugging Face's format.

It names fields of the message, the texts or patterns that open and close each of them, and how to read what stands
between. transformers (utils/chat_parsing) defines what it means. Where transformers raises since a tool call cannot be
read, the call is content here; and a call that is cut off is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from pagewire_router.parsing.coercion import ToolSchemas
from pagewire_router.parsing.cursor import Cursor, Malformed, Reading
from pagewire_router.parsing.events import Call, EventCollector
from pagewire_router.parsing.template_content import CONTENT_PARSERS, check_transform, field_value
from pagewire_router.parsing.values import call_of

VERSION = 1
_REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = "tool_calls"
_SEARCH_TIMEOUT_S = 1.0
"""Longest that one search for a pattern may take: patterns come with the model."""


class TemplateUnusable(ValueError):
    """The response_template is not one that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Delimiter:
    """What opens or closes a field."""

    pattern: Any
    is_final: bool
    """A match cannot become longer by text that follows."""
    literals: tuple[str, ...] = ()
    """The texts that match; empty: a pattern says it."""


@dataclass(frozen=True, slots=True)
class TemplateField:
    """One field of the message."""

    name: str
    opening: Delimiter | None
    """None: the field holds what no other field does."""
    closing: Delimiter | None
    """None: the field ends with the output, or where another one opens."""
    content: str
    content_args: Mapping[str, Any]
    transform: Any
    transform_each: bool


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """A response_template that was checked and compiled."""

    fields: tuple[TemplateField, ...]
    start_anchor: Any
    """Pattern of what stands before the assistant's message in the prompt."""

    @classmethod
    def from_json(cls, spec: Any) -> "ResponseTemplate":
        """Raises TemplateUnusable."""
        if not isinstance(spec, Mapping) or not isinstance(spec.get("fields"), Mapping) or not spec["fields"]:
            raise TemplateUnusable("response_template has no fields")
        if spec.get("version", VERSION) != VERSION:
            raise TemplateUnusable(f"response_template has version {spec['version']}; {VERSION} is served")
        fields = tuple(_field(name, value) for name, value in spec["fields"].items())
        if sum(field.opening is None for field in fields) > 1:
            raise TemplateUnusable("response_template has more than one field that nothing opens")
        anchor = _delimiter("response_template", spec, "start_anchor")
        if anchor is None:
            raise TemplateUnusable("response_template has no start_anchor")
        return cls(fields, anchor.pattern)

    @property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """What opens and what closes the reasoning, without whitespace around it; None: there is none, or patterns say
        it."""
        for field in self.fields:
            ends = [end.literals[0].strip() for end in (field.opening, field.closing) if end and end.literals]
            if field.name in _REASONING and len(ends) == 2 and all(ends):
                return ends[0], ends[1]
        return None


def _field(name: str, spec: Any) -> TemplateField:
    if not isinstance(spec, Mapping):
        raise TemplateUnusable(f"field {name} of response_template is no object")
    scope = f"response_template, field {name}"
    content = spec.get("content", "text")
    if content not in CONTENT_PARSERS:
        raise TemplateUnusable(f'{scope}: content "{content}" is not known')
    try:
        check_transform(spec.get("transform"))
    except Malformed:
        raise TemplateUnusable(f"{scope}: its transform mixes text and placeholders") from None
    return TemplateField(
        name,
        _delimiter(scope, spec, "open"),
        _delimiter(scope, spec, "close"),
        content,
        spec.get("content_args", {}),
        spec.get("transform"),
        spec.get("transform_each", False),
    )


def _delimiter(scope: str, spec: Mapping[str, Any], key: str) -> Delimiter | None:
    """The delimiter of `key`, a literal or a list of them, or of `key`_pattern."""
    if (pattern := spec.get(f"{key}_pattern")) is not None:
        try:
            return Delimiter(regex.compile(pattern, regex.DOTALL), is_final=False)
        except (regex.error, TypeError) as error:
            raise TemplateUnusable(f"{scope}: {key}_pattern cannot be read: {error}") from None
    literals = spec.get(key)
    if literals is None:
        return None
    literals = [literals] if isinstance(literals, str) else literals
    if not isinstance(literals, list) or not literals or not all(isinstance(text, str) and text for text in literals):
        raise TemplateUnusable(f"{scope}: {key} is neither a text nor a list of texts")
    ordered = sorted(set(literals), key=len, reverse=True)
    can_grow = any(a != b and a.startswith(b) for a in ordered for b in ordered)
    pattern = regex.compile("|".join(map(regex.escape, ordered)), regex.DOTALL)
    return Delimiter(pattern, is_final=not can_grow, literals=tuple(literals))


class TemplateReader:
    """The grammar that a response_template describes."""

    def __init__(
        self, cursor: Cursor, events: EventCollector, template: ResponseTemplate, schemas: ToolSchemas
    ) -> None:
        self._cursor = cursor
        self._events = events
        self._schemas = schemas
        self._anchor = template.start_anchor
        # Without tools a call is text like any other.
        fields = [field for field in template.fields if schemas or field.name != _CALLS]
        self._explicit = [field for field in fields if field.opening is not None]
        self._implicit = next((field for field in fields if field.opening is None), None)
        self.is_lenient = False
        """A call counts though the output ends before what closes it."""

    def read(self, prompt: str) -> Reading[None]:
        """Reads the whole output. The end of the prompt says in which field it begins."""
        current = self._field_at_end(prompt)
        captures: Mapping[str, str] = {}
        opening = ""
        while True:
            if current is not None:
                captures, opening = yield from self._read_field(current, captures, opening)
                current = None
            else:
                current, captures, opening = yield from self._read_implicit()
            if current is None and (yield from self._cursor.at_end()):
                return

    def _field_at_end(self, prompt: str) -> TemplateField | None:
        """The field that the prompt leaves open."""
        try:
            ends = [match.end() for match in self._anchor.finditer(prompt, timeout=_SEARCH_TIMEOUT_S)]
        except TimeoutError:
            return None
        if not ends:
            return None
        rest, position = prompt[ends[-1] :], 0
        current: TemplateField | None = None
        while True:
            watched = [(current, current.closing)] if current else [(f, f.opening) for f in self._explicit]
            matches = [(m.start(), -m.end(), f, m) for f, d in watched if d and (m := _search(d, rest, position))]
            if not matches:
                return current
            _, _, field, match = min(matches, key=lambda found: found[:2])
            current = None if current is not None else field
            if match.end() == position and match.start() == match.end():
                return current
            position = match.end()

    def _read_implicit(self) -> Reading[tuple[TemplateField | None, Mapping[str, str], str]]:
        """Reads up to what opens a field, or up to what closes this one."""
        field = self._implicit
        watched = [(each, each.opening) for each in self._explicit if each.opening is not None]
        if field is not None and field.closing is not None:
            watched.append((field, field.closing))
        text = _Text(self._writer(field), strips=field is not None and field.content_args.get("strip", True))
        while True:
            found = yield from self._next(watched, text)
            if found is None:
                return None, {}, ""
            opened, match = found
            self._cursor.position += match.end() - match.start()
            if opened is not field:
                return opened, {key: value for key, value in match.groupdict().items() if value}, match.group()
            if match.start() == match.end():
                yield from self._skip_rest()
                return None, {}, ""

    def _read_field(
        self, field: TemplateField, captures: Mapping[str, str], opening: str
    ) -> Reading[tuple[Mapping[str, str], str]]:
        """Reads a field up to and including what closes it."""
        watched = [(field, field.closing)] if field.closing is not None else []
        is_call = field.name == _CALLS
        kept: list[str] = []
        text = _Text(kept.append if is_call else self._writer(field), strips=field.content_args.get("strip", True))
        if is_call:
            text.strips = False
        found = yield from self._next(watched, text)
        text.finish()
        if found is not None:
            self._cursor.position += found[1].end() - found[1].start()
        if is_call:
            body = "".join(kept)
            self._take_calls(field, captures, body, opening + body + (found[1].group() if found else ""), found is None)
        return {}, ""

    def _take_calls(
        self, field: TemplateField, captures: Mapping[str, str], body: str, whole: str, is_cut_off: bool
    ) -> None:
        if is_cut_off and field.closing is not None and not self.is_lenient:
            return
        try:
            value = field_value(
                body, field.content, field.content_args, captures, field.transform, each=field.transform_each
            )
            calls = [call_of(item, needs_arguments=False) for item in (value if isinstance(value, list) else [value])]
        except Malformed:
            if not is_cut_off:
                self._events.content(whole)
            return
        for call in calls:
            self._events.call(Call(call.name, self._typed(call), call.id))

    def _typed(self, call: Call) -> dict[str, Any]:
        return {
            key: self._schemas.typed(call.name, key, value) if isinstance(value, str) else value
            for key, value in call.arguments.items()
        }

    def _next(
        self, watched: Sequence[tuple[TemplateField, Delimiter]], text: "_Text"
    ) -> Reading[tuple[TemplateField, Any] | None]:
        """Reads text up to the first delimiter, which is not read; None: the output ends before any."""
        cursor = self._cursor
        while True:
            cursor.forget()
            found, position = self._scan(watched)
            text.add(cursor.text[:position])
            cursor.position = position
            if found is not None:
                return found
            if cursor.ended:
                text.finish()
                return None
            yield

    def _scan(self, watched: Sequence[tuple[TemplateField, Delimiter]]) -> tuple[tuple[TemplateField, Any] | None, int]:
        """(first delimiter that is certain, its position), or (None, where one may begin)."""
        text, ended = self._cursor.text, self._cursor.ended
        held = len(text)
        best: tuple[tuple[int, int], TemplateField, Any] | None = None
        for field, delimiter in watched:
            match = _search(delimiter, text, 0, partial=not ended)
            if match is None:
                continue
            at_edge = match.end() == len(text) and (match.start() == match.end() or not delimiter.is_final)
            if not ended and (match.partial or at_edge):
                held = min(held, match.start())
            elif best is None or (match.start(), -match.end()) < best[0]:
                best = ((match.start(), -match.end()), field, match)
        if best is None or (best[0][0] >= held and not ended):
            return None, held
        return (best[1], best[2]), best[0][0]

    def _skip_rest(self) -> Reading[None]:
        while not self._cursor.ended:
            yield
        self._cursor.position = len(self._cursor.text)

    def _writer(self, field: TemplateField | None) -> Callable[[str], None]:
        if field is None or field.name == "content":
            return self._events.content
        if field.name in _REASONING:
            return self._events.reasoning
        return lambda _: None


def _search(delimiter: Delimiter, text: str, start: int, *, partial: bool = False) -> Any:
    try:
        return delimiter.pattern.search(text, start, partial=partial, timeout=_SEARCH_TIMEOUT_S)
    except TimeoutError:
        return None


class _Text:
    """Text of a field, without whitespace around it if that is asked for."""

    def __init__(self, write: Callable[[str], None], *, strips: bool) -> None:
        self._write = write
        self.strips = strips
        self._space = ""
        self._is_empty = True

    def add(self, text: str) -> None:
        if not self.strips:
            self._write(text)
            return
        if self._is_empty:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            self._write(self._space + body)
            self._is_empty = False
            self._space = ""
        if not self._is_empty:
            self._space += text[len(body) :]

    def finish(self) -> None:
        """Ends the field: the whitespace at its end is dropped."""
        self._space = ""
