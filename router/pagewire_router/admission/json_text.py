"""Reads JSON that clients send: strictly, with bounded depth, and without values that JSON cannot express."""

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Deepest nesting of arrays and objects."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The text is not accepted. The message says why."""


def parse_json(text: str) -> Any:
    """The value. Key order, integers of any size, and the difference between 1 and 1.0 are kept. Raises JsonError."""
    if is_too_deep := text.count("[") + text.count("{") > MAX_DEPTH:
        is_too_deep = _is_nested_deeply(text)
    if is_too_deep:
        raise JsonError(f"nests arrays and objects more than {MAX_DEPTH} deep")
    try:
        value = _DECODER.decode(text)
    except JsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise JsonError(f"is not JSON: {error}") from None
    if _SURROGATE.search(text):
        _refuse_lone_surrogates(value)
    return value


def _is_nested_deeply(text: str) -> bool:
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        character = token[0][0]
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif character in "]}":
            depth -= 1
    return False


_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
"""A string without an end extends to the end of the text; otherwise the search would restart at each of its quotes."""


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonError("holds half of a surrogate pair, which is no character") from None


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"is not JSON: {name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonError(f"holds the number {text[:40]}, which is too large for a double")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
