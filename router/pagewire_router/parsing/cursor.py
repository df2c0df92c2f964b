"""A position in text that is still arriving.

Grammars are written as generators over a cursor. Each `yield` in them means that the text so far does not decide what
comes next; the parser resumes the generator when there is more, or when the text has ended. A grammar never sees where
the stream was cut, so what it reads cannot depend on it.
"""

import re
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A grammar that reads from a cursor, waits for text by yielding, and returns T."""

_SPACE = re.compile(r"\s*")


class Malformed(Exception):
    """The text is not what the grammar describes, whatever may follow."""


class Incomplete(Exception):
    """The text has ended within what the grammar describes."""


class Markers:
    """A set of literals to look for at once. Where several match, the longest counts."""

    def __init__(self, literals: Sequence[str]) -> None:
        ordered = sorted(set(literals), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._prefixes = frozenset(text[:n] for text in ordered for n in range(1, len(text)))
        self._longest = len(ordered[0]) if ordered else 0
        initials = "".join(sorted({re.escape(text[0]) for text in ordered}))
        self._initial = re.compile(f"[{initials}]") if ordered else None

    def search(self, text: str, start: int, *, ended: bool) -> tuple[int, str | None]:
        """Returns (position, literal) of the first literal at or behind start, or (position, None) where text from
        that position on may become one; that is the end of the text if none can.
        """
        if self._pattern is None:
            return len(text), None
        match = self._pattern.search(text, start)
        undecided = len(text) if ended else self._undecided_from(text, start)
        if match is None or undecided <= match.start():
            return undecided, None
        return match.start(), match.group()

    def _undecided_from(self, text: str, start: int) -> int:
        assert self._initial is not None
        position = max(start, len(text) - self._longest + 1)
        while (match := self._initial.search(text, position)) is not None:
            if text[match.start() :] in self._prefixes:
                return match.start()
            position = match.end()
        return len(text)


@lru_cache(maxsize=512)
def markers(*literals: str) -> Markers:
    """The set of these literals, compiled once."""
    return Markers(literals)


class Cursor:
    """Text that has arrived, and the position up to which it is read."""

    __slots__ = ("ended", "position", "text")

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self.ended = False
        """No more text comes."""

    def append(self, text: str) -> None:
        """Adds text that has arrived."""
        self.text += text

    def forget(self) -> None:
        """Drops the text before the position. No position from before may be used after this."""
        self.text = self.text[self.position :]
        self.position = 0

    def more(self) -> Reading[None]:
        """Waits for more text. Raises Incomplete if none comes."""
        if self.ended:
            raise Incomplete
        yield

    def at_end(self) -> Reading[bool]:
        """Waits until it is known whether any text follows, and returns whether none does."""
        while self.position >= len(self.text):
            if self.ended:
                return True
            yield
        return False

    def skip_space(self) -> Reading[None]:
        """Skips whitespace, up to the end of the text at most."""
        while True:
            match = _SPACE.match(self.text, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self.text) or self.ended:
                return
            yield

    def looking_at(self, *literals: str) -> Reading[str | None]:
        """The longest of these literals that comes next; None: none does. Raises Incomplete."""
        longest = max(map(len, literals))
        while True:
            text = self.text[self.position : self.position + longest]
            undecided = any(len(text) < len(literal) and literal.startswith(text) for literal in literals)
            if not undecided or self.ended:
                break
            yield
        found = max((literal for literal in literals if text.startswith(literal)), key=len, default=None)
        if found is None and undecided:
            raise Incomplete
        return found

    def accept(self, literal: str) -> Reading[bool]:
        """Reads the literal if it comes next, and returns whether it does. Raises Incomplete."""
        found = yield from self.looking_at(literal)
        if found is None:
            return False
        self.position += len(literal)
        return True

    def expect(self, literal: str) -> Reading[None]:
        """Reads the literal. Raises Malformed, Incomplete."""
        if not (yield from self.accept(literal)):
            raise Malformed

    def find(self, found: Markers, start: int) -> Reading[tuple[int, str]]:
        """(position, literal) of the first literal at or behind start. Raises Incomplete."""
        while True:
            start, literal = found.search(self.text, start, ended=self.ended)
            if literal is not None:
                return start, literal
            yield from self.more()

    def take(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Reads as much as matches a pattern that matches any run of some characters. May be nothing."""
        start = end = self.position
        while True:
            match = pattern.match(self.text, end)
            end = match.end() if match is not None else end
            if end < len(self.text) or self.ended:
                self.position = end
                return self.text[start:end]
            yield

    def take_until(self, literal: str, max_chars: int) -> Reading[str]:
        """Reads up to the literal, and the literal; returns the text before it. Raises Malformed if it is longer than
        max_chars, Incomplete.
        """
        start = self.position
        while True:
            end = self.text.find(literal, start, start + max_chars + len(literal))
            if end >= 0:
                self.position = end + len(literal)
                return self.text[start:end]
            if len(self.text) >= start + max_chars + len(literal):
                raise Malformed
            yield from self.more()
