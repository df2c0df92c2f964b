"""Types argument values that a format writes as plain text, by the tool's JSON schema."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pagewire_router.parsing.cursor import Malformed
from pagewire_router.parsing.values import is_deep, parse_json

_MAX_SCHEMAS = 256
"""Most schemas that are read for one parameter: its own, and those that its unions and references lead to."""
_MAX_VALUES = 1024
"""Most values of an enumeration that are looked at."""
_INTEGER = re.compile(r"[+-]?\d+")
_NOTHING = object()


class ToolSchemas:
    """The parameters of the tools that a request offers."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """tools: as OpenAI's API has them, or their "function" alone."""
        functions = [tool.get("function", tool) for tool in tools]
        self._parameters: dict[str, Mapping[str, Any]] = {
            function["name"]: parameters if isinstance(parameters := function.get("parameters"), Mapping) else {}
            for function in functions
            if isinstance(function, Mapping) and isinstance(function.get("name"), str)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def __bool__(self) -> bool:
        return bool(self._parameters)

    def typed(self, tool: str, key: str, text: str) -> Any:
        """The value of the text for this parameter: of the first type that the schema allows and the text has; text if
        none fits, or the schema does not say.
        """
        root = self._parameters.get(tool, {})
        types = _types(_property(root, key), root)
        # A string fits always, so it comes last.
        for name in sorted(types, key=lambda name: (name == "string", name != "null")):
            value = _of_type(text, name)
            if value is not _NOTHING:
                return value
        return text


def _property(root: Mapping[str, Any], key: str) -> Any:
    properties = root.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    return root.get("additionalProperties")


def _types(schema: Any, root: Mapping[str, Any]) -> list[str]:
    """Names of the types that a schema allows, each once. What is malformed allows none."""
    names: dict[str, None] = {}
    resolved: set[str] = set()
    unread = [schema]
    for _ in range(_MAX_SCHEMAS):
        if not unread:
            break
        schema = unread.pop()
        if not isinstance(schema, Mapping):
            continue
        names.update(dict.fromkeys(_own_types(schema)))
        choices = [
            choice for word in ("anyOf", "oneOf", "allOf") for choice in _entries(schema.get(word), _MAX_SCHEMAS)
        ]
        unread += reversed(choices)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in resolved:
            resolved.add(reference)
            unread.append(_resolve(reference, root))
    return list(names)


def _own_types(schema: Mapping[str, Any]) -> Iterator[str]:
    """Names of the types that a schema allows itself."""
    declared = schema.get("type")
    if isinstance(declared, str):
        yield declared
    yield from (name for name in _entries(declared, _MAX_VALUES) if isinstance(name, str))
    if declared is None:
        values = _entries(schema.get("enum"), _MAX_VALUES) or ([schema["const"]] if "const" in schema else [])
        yield from map(_type_of, values)
    if schema.get("nullable") is True:
        yield "null"


def _entries(value: Any, most: int) -> Sequence[Any]:
    """The first entries of an array; none of anything else."""
    return value[:most] if isinstance(value, list) else ()


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    target: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
    return target


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}
    return names.get(type(value), "null")


def _of_type(text: str, name: str) -> Any:
    """The text as a value of a type; _NOTHING: it is none."""
    stripped = text.strip()
    if name == "string":
        return text
    if name == "null":
        return None if stripped in ("null", "None") else _NOTHING
    if name == "boolean":
        return {"true": True, "false": False, "1": True, "0": False}.get(stripped.lower(), _NOTHING)
    if name in ("integer", "number"):
        return _number(stripped, whole=name == "integer")
    if name in ("object", "array"):
        value = _structure(stripped)
        return value if isinstance(value, dict if name == "object" else list) else _NOTHING
    return _NOTHING


def _number(text: str, *, whole: bool) -> Any:
    if "_" in text:  # Python reads these, JSON does not.
        return _NOTHING
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        value = float(text)
    except ValueError:
        return _NOTHING
    if value - value != 0 or (whole and not value.is_integer()):  # Infinite or not a number
        return _NOTHING
    return int(value) if whole else value


def _structure(text: str) -> Any:
    try:
        return parse_json(text)
    except Malformed:
        pass
    try:  # Some models write Python's notation.
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _NOTHING
    return _NOTHING if is_deep(value) else value
