"""Reads PromQL as far as tests need it: which series an expression selects, and which labels it groups and joins by."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""\s+ | (?P<string>"(?:[^"\\]|\\.)*") | (?P<range>\[[^\]]*\]) | (?P<number>[0-9][0-9a-z_.]*)
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*) | (?P<operator>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){},])""",
    re.VERBOSE,
)
LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


@dataclass(frozen=True)
class Matcher:
    label: str
    operator: str
    value: str

    def accepts(self, value: str) -> bool:
        if self.operator in ("=", "!="):
            return (value == self.value) == (self.operator == "=")
        return bool(re.fullmatch(self.value, value)) == (self.operator == "=~")


@dataclass(frozen=True)
class Selector:
    """A metric's name, empty if only __name__ is matched, and what its labels must be."""

    name: str
    matchers: tuple[Matcher, ...] = ()

    def selects(self, name: str, labels: dict[str, str]) -> bool:
        """Whether it selects a series; of matchers, those on its own labels count."""
        if self.name and name != self.name:
            return False
        known = labels | {"__name__": name}
        return all(matcher.accepts(known[matcher.label]) for matcher in self.matchers if matcher.label in known)


@dataclass
class Expression:
    selectors: list[Selector] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    """Labels that the expression groups and joins by."""


class _Tokens:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokenize(text))
        self._position = 0

    def peek(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        assert token, "the expression ends too early"
        assert expected in ("", token), f"{token!r} where {expected!r} is due"
        self._position += 1
        return token


def _tokenize(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        assert match, f"no PromQL at {text[position:]!r}"
        position = match.end()
        if match.lastgroup:
            yield match[0]


def parse(text: str) -> Expression:
    """Raises AssertionError for what is not PromQL as this reads it."""
    tokens, found = _Tokens(text), Expression()
    depth = 0
    while token := tokens.peek():
        if token == "{":
            found.selectors.append(Selector("", _matchers(tokens)))
            continue
        tokens.take()
        depth += (token == "(") - (token == ")")
        assert depth >= 0, f"a parenthesis too many in {text!r}"
        if not re.match(r"[a-zA-Z_:]", token) or token in WORDS:
            continue
        if token in LABEL_LISTS:
            # group_left alone copies no label.
            found.labels |= _label_list(tokens) if tokens.peek() == "(" else set()
        elif tokens.peek() not in ("(", "by", "without"):
            found.selectors.append(Selector(token, _matchers(tokens) if tokens.peek() == "{" else ()))
    assert depth == 0, f"a parenthesis is open in {text!r}"
    return found


def _matchers(tokens: _Tokens) -> tuple[Matcher, ...]:
    tokens.take("{")
    matchers = []
    while tokens.peek() != "}":
        label, operator, value = tokens.take(), tokens.take(), tokens.take()
        assert operator in ("=", "!=", "=~", "!~"), f"{operator!r} after label {label}"
        assert value[0] == '"', f"{value} is no string"
        matchers.append(Matcher(label, operator, value[1:-1]))
        if tokens.peek() == ",":
            tokens.take()
    tokens.take("}")
    return tuple(matchers)


def _label_list(tokens: _Tokens) -> set[str]:
    tokens.take("(")
    labels = set()
    while (token := tokens.take()) != ")":
        if token != ",":
            labels.add(token)
    return labels


Series = tuple[str, dict[str, str]]
"""A name and its labels."""
TARGET_LABELS = {"namespace", "job", "instance"}
"""Labels that Prometheus and Kubernetes add to every series."""


def faults(text: str, live: Iterable[Series]) -> list[str]:
    """Returns the names and labels of an expression that no live series has."""
    expression, live = parse(text), list(live)
    found, known = [], set(TARGET_LABELS)
    for selector in expression.selectors:
        if selector.name == "up":
            continue
        selected = [labels for name, labels in live if selector.selects(name, labels)]
        if not selected:
            found.append(f"nothing is selected by {selector}")
        known |= {label for labels in selected for label in labels}
        unknown = {matcher.label for matcher in selector.matchers} - known - {"__name__"}
        if unknown:
            found.append(f"{selector.name} has no label {sorted(unknown)}")
    if expression.labels - known:
        found.append(f"no series has the label {sorted(expression.labels - known)}")
    return found
