"""Reads values in the notations that models write arguments in: JSON, Gemma's dialect of it, Python."""

import ast
import json
import math
import re
import warnings
from typing import Any, NoReturn

from pagewire_router.parsing.cursor import Cursor, Malformed, Markers, Reading
from pagewire_router.parsing.events import Call

MAX_DEPTH = 100
"""Deepest nesting that is read."""
_MAX_KEY_CHARS = 512
_JSON_PLAIN = re.compile(r"[\s\d,:.+\-truefalsnE]+")
_JSON_STRING = re.compile(r'[^"\\]+')
_PYTHON_NAME = re.compile(r"[\w.]+")
_PYTHON_PLAIN = re.compile(r"[^\"'\[\]{}()]+")
_BRACKETS = {"]": "[", "}": "{", ")": "("}
_QUOTE = '<|"|>'
_BARE_ENDS = Markers([",", "}", "]"])
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text. Control characters within strings are let through. Raises Malformed."""
    try:
        value = json.loads(text, strict=False, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise Malformed from None
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
        raise Malformed
    return value


def is_deep(value: Any) -> bool:
    """Whether a value is nested deeper than MAX_DEPTH, so that writing it might fail."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list | tuple)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return bool(level)


def read_json(cursor: Cursor) -> Reading[Any]:
    """Reads a JSON object or array. Raises Malformed, Incomplete."""
    yield from cursor.skip_space()
    start = cursor.position
    depth = 0
    while True:
        if cursor.position >= len(cursor.text):
            yield from cursor.more()
            continue
        char = cursor.text[cursor.position]
        if depth and (match := _JSON_PLAIN.match(cursor.text, cursor.position)) is not None:
            cursor.position = match.end()
            continue
        cursor.position += 1
        if char in "{[":
            depth += 1
        elif char in "}]" and depth:
            depth -= 1
        elif char == '"' and depth:
            yield from _skip_string(cursor, '"', _JSON_STRING)
        else:
            raise Malformed
        if depth == 0:
            return parse_json(cursor.text[start : cursor.position])
        if depth > MAX_DEPTH:
            raise Malformed


def _skip_string(cursor: Cursor, quote: str, inner: re.Pattern[str]) -> Reading[None]:
    """Reads the rest of a string in which a backslash escapes the next character."""
    while True:
        if cursor.position >= len(cursor.text):
            yield from cursor.more()
        elif (match := inner.match(cursor.text, cursor.position)) is not None:
            cursor.position = match.end()
        elif cursor.text[cursor.position] == quote:
            cursor.position += 1
            return
        elif cursor.position + 1 >= len(cursor.text):
            yield from cursor.more()
        else:
            cursor.position += 2


def read_gemma(cursor: Cursor, depth: int = 0) -> Reading[Any]:
    """Reads an object or array in Gemma's dialect: keys without quotes, strings between `<|"|>`. Raises Malformed,
    Incomplete.
    """
    opening = yield from cursor.looking_at("{", "[")
    if opening is None or depth > MAX_DEPTH:
        raise Malformed
    cursor.position += 1
    fields: dict[str, Any] = {}
    items: list[Any] = []
    closing = "}" if opening == "{" else "]"
    while True:
        yield from cursor.skip_space()
        if (yield from cursor.accept(closing)):
            return fields if opening == "{" else items
        if opening == "{":
            key = yield from _gemma_key(cursor)
            yield from cursor.skip_space()
            fields[key] = yield from _gemma_value(cursor, depth)
        else:
            items.append((yield from _gemma_value(cursor, depth)))
        yield from cursor.skip_space()
        if (yield from cursor.looking_at(closing)) is None:
            yield from cursor.expect(",")


def _gemma_key(cursor: Cursor) -> Reading[str]:
    if (yield from cursor.accept(_QUOTE)):
        key = yield from cursor.take_until(_QUOTE, _MAX_KEY_CHARS)
        yield from cursor.skip_space()
        yield from cursor.expect(":")
        return key
    key = yield from cursor.take_until(":", _MAX_KEY_CHARS)
    key = key.strip().strip('"')
    if not key or any(char in key for char in "{}[],"):
        raise Malformed
    return key


def _gemma_value(cursor: Cursor, depth: int) -> Reading[Any]:
    opening = yield from cursor.looking_at(_QUOTE, "{", "[", '"')
    if opening == _QUOTE:
        start = cursor.position + len(_QUOTE)
        end, _ = yield from cursor.find(Markers([_QUOTE]), start)
        cursor.position = end + len(_QUOTE)
        return cursor.text[start:end]
    if opening == '"':
        start = cursor.position
        cursor.position += 1
        yield from _skip_string(cursor, '"', _JSON_STRING)
        return parse_json(cursor.text[start : cursor.position])
    if opening is not None:
        return (yield from read_gemma(cursor, depth + 1))
    start = cursor.position
    end, _ = yield from cursor.find(_BARE_ENDS, start)
    cursor.position = end
    return _bare_value(cursor.text[start:end].strip())


def _bare_value(text: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NUMBER.fullmatch(text):
        return parse_json(text) if not re.match(r"-?0\d", text) else text
    if not text:
        raise Malformed
    return text


def read_python_calls(cursor: Cursor) -> Reading[list[Call]]:
    """Reads calls in a list, `[name(key=value), ...]`. Raises Malformed, Incomplete."""
    start = cursor.position
    yield from cursor.expect("[")
    yield from cursor.skip_space()
    # Any other list is refused at its first character, not only where it ends.
    name = yield from cursor.take(_PYTHON_NAME)
    if not name or name[0].isdigit() or not (yield from cursor.accept("(")):
        raise Malformed
    yield from _skip_brackets(cursor, "[(")
    tree = _parse_python(cursor.text[start : cursor.position])
    if len(tree) != 1 or not isinstance(tree[0], ast.List):
        raise Malformed
    return [_python_call(node) for node in tree[0].elts]


def read_python_lines(cursor: Cursor, end: str) -> Reading[list[Call]]:
    """Reads calls up to `end`, one on each line. Raises Malformed, Incomplete."""
    start = cursor.position
    position, _ = yield from cursor.find(Markers([end]), start)
    cursor.position = position
    return [_python_call(node) for node in _parse_python(cursor.text[start:position].strip())]


def _skip_brackets(cursor: Cursor, opened: str) -> Reading[None]:
    while opened:
        if cursor.position >= len(cursor.text):
            yield from cursor.more()
            continue
        if (match := _PYTHON_PLAIN.match(cursor.text, cursor.position)) is not None:
            cursor.position = match.end()
            continue
        char = cursor.text[cursor.position]
        cursor.position += 1
        if char in "\"'":
            yield from _skip_string(cursor, char, re.compile(rf"[^{char}\\]+"))
        elif char in _BRACKETS:
            if opened[-1] != _BRACKETS[char]:
                raise Malformed
            opened = opened[:-1]
        else:
            opened += char
        if len(opened) > MAX_DEPTH:
            raise Malformed


def _parse_python(text: str) -> list[ast.expr]:
    try:
        with warnings.catch_warnings():  # Of unknown escapes
            warnings.simplefilter("ignore")
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Malformed from None
    if not all(isinstance(statement, ast.Expr) for statement in body):
        raise Malformed
    return [statement.value for statement in body if isinstance(statement, ast.Expr)]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
        raise Malformed
    return Call(_dotted_name(node.func), {word.arg: _python_value(word.value) for word in node.keywords if word.arg})


def _dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted_name(node.value)}.{node.attr}"
    if not isinstance(node, ast.Name):
        raise Malformed
    return node.id


def _python_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | int | float)):
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise Malformed
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_python_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_python_key(key): _python_value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _python_value(node.operand)
        if isinstance(value, int | float):
            return -value
    raise Malformed


def _python_key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return str(node.value)
    raise Malformed


def call_of(value: Any, *, needs_arguments: bool) -> Call:
    """The call that a JSON object describes. Raises Malformed.

    needs_arguments: an object without arguments is no call; otherwise it is one with none.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {"id": value.get("id"), **value["function"]}
    if not isinstance(value, dict):
        raise Malformed
    name = value.get("name", value.get("tool_name"))
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None and not needs_arguments:
        arguments = {}
    if isinstance(arguments, str):
        arguments = parse_json(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise Malformed
    call_id = value.get("id", value.get("tool_call_id"))
    return Call(name, arguments, call_id if isinstance(call_id, str) and call_id else None)
