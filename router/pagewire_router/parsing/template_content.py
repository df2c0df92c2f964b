"""What stands in a field of a response_template: read by its content parser, and put into the form of the message."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import regex

from pagewire_router.parsing.cursor import Malformed
from pagewire_router.parsing.values import parse_json

_PLACEHOLDER = regex.compile(r"\{(\w+(?:\.\w+)*)\}")
_BARE_KEY = regex.compile(r'([{,]\s*)([^\s{}\[\],:"][^{}\[\],:"]*?)\s*:')
_TIMEOUT_S = 1.0


def _text(text: str, args: Mapping[str, Any]) -> str:
    return text.strip() if args.get("strip", True) else text


def _number(read: Callable[[str], Any]) -> Callable[[str, Mapping[str, Any]], Any]:
    def parse(text: str, args: Mapping[str, Any]) -> Any:
        try:
            return read(_text(text, args))
        except ValueError:
            raise Malformed from None

    return parse


def _bool(text: str, args: Mapping[str, Any]) -> bool:
    return _text(text, args).lower() in ("true", "1")


def _json(text: str, args: Mapping[str, Any]) -> Any:
    """JSON; with `string_delims` strings stand between other marks, with `unquoted_keys` keys need no quotes."""
    marks = args.get("string_delims", [])
    try:
        if not marks:
            return parse_json(_quoted_keys(text) if args.get("unquoted_keys") else text)
        return parse_json(_plain_json(text, marks, unquoted_keys=bool(args.get("unquoted_keys"))))
    except Malformed:
        if args.get("allow_non_json"):
            return _text(text, args)
        raise


def _plain_json(text: str, marks: list[tuple[str, str]], *, unquoted_keys: bool) -> str:
    strings = "|".join(f"{regex.escape(opening)}(.*?){regex.escape(closing)}" for opening, closing in marks)
    parts: list[str] = []
    end = 0
    for match in regex.finditer(strings, text, regex.DOTALL, timeout=_TIMEOUT_S):
        between = text[end : match.start()]
        parts += (_quoted_keys(between) if unquoted_keys else between, json.dumps(match.group(match.lastindex)))
        end = match.end()
    parts.append(_quoted_keys(text[end:]) if unquoted_keys else text[end:])
    return "".join(parts)


def _quoted_keys(text: str) -> str:
    quoted: str = _BARE_KEY.sub(lambda match: f"{match[1]}{json.dumps(match[2])}:", text)
    return quoted


def _xml_inline(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Tags found by `tag_pattern`, which has the groups "key" and "value"."""
    values: dict[str, Any] = {}
    duplicates: set[str] = set()
    try:
        matches = list(regex.finditer(args.get("tag_pattern", ""), text, regex.DOTALL, timeout=_TIMEOUT_S))
    except (regex.error, TimeoutError):
        raise Malformed from None
    for match in matches:
        groups = match.groupdict()
        key = groups.get("key")
        if key is None:
            raise Malformed
        value = _inner(groups.get("value") or "", args)
        if key in values and args.get("merge_duplicates"):
            values[key] = [*(values[key] if key in duplicates else [values[key]]), value]
            duplicates.add(key)
        else:
            values[key] = value
    return values


def _kv_lines(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs of key and value, one on each line."""
    separator = args.get("kv_sep", ":")
    values = {}
    for line in text.split(args.get("line_sep", "\n")):
        key, found, value = line.partition(separator)
        if found and line.strip():
            values[_text(key, args)] = _inner(_text(value, args), args)
    return values


def _inner(text: str, args: Mapping[str, Any]) -> Any:
    parser = args.get("value_parser")
    if parser is None:
        return text
    return CONTENT_PARSERS[parser.get("name", "text")](text, parser.get("args", {}))


CONTENT_PARSERS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "text": _text,
    "int": _number(int),
    "float": _number(float),
    "bool": _bool,
    "json": _json,
    "xml-inline": _xml_inline,
    "kv-lines": _kv_lines,
}


def field_value(
    body: str, content: str, args: Mapping[str, Any], captures: Mapping[str, str], transform: Any, *, each: bool
) -> Any:
    """The value of a field. Raises Malformed.

    captures: named groups of the pattern that opened the field.
    each: the content is a list, and the transform is for each of its objects.
    """
    value = CONTENT_PARSERS[content](body, args)
    if transform is None:
        return value
    if not each:
        return _transformed(transform, {**captures, "content": value})
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed
    return [_transformed(transform, {**captures, **item}) for item in value]


def _transformed(transform: Any, scope: Mapping[str, Any]) -> Any:
    """The transform with its placeholders, such as "{content.name}", replaced."""
    if isinstance(transform, Mapping):
        return {key: _transformed(value, scope) for key, value in transform.items()}
    if isinstance(transform, list):
        return [_transformed(item, scope) for item in transform]
    if not isinstance(transform, str) or (match := _PLACEHOLDER.fullmatch(transform)) is None:
        return transform
    value: Any = scope
    for key in match[1].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise Malformed
        value = value[key]
    return value


def check_transform(transform: Any) -> None:
    """Raises Malformed if a text in it holds a placeholder beside other text."""
    if isinstance(transform, Mapping | list):
        for part in transform.values() if isinstance(transform, Mapping) else transform:
            check_transform(part)
    elif isinstance(transform, str) and _PLACEHOLDER.search(transform) and not _PLACEHOLDER.fullmatch(transform):
        raise Malformed
