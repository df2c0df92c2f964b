"""Tables of the fields that routes accept: how a value is read, what it sets, and how /openapi.json describes it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pagewire.parameter_table import MAX_INT32, MAX_LOGIT_BIAS_ENTRIES
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.errors import HttpError, not_served, wrong

Schema = dict[str, Any]
Read = Callable[[Any, str], Any]
"""Reads a JSON value of a field with this name. Raises HttpError."""
MAX_ENTRIES = 1 << 20
"""Most entries of a list of numbers or strings."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of values."""

    schema: Schema
    """JSON schema of the values."""
    read: Read
    json_type: type | None = None
    """The type whose values are all taken as they are; None: there is none."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request."""

    name: str
    kind: Kind
    doc: str
    """One sentence for the OpenAPI document."""
    sets: str | None = None
    """The field of SamplingParams that has this value; None: the route decides."""
    only: tuple[Any, ...] | None = None
    """The values that are served, of a field whose others are refused by name; None: all that the kind has."""
    is_required: bool = False


class FieldTable:
    """All fields that a route accepts, by name."""

    def __init__(self, *fields: Field) -> None:
        self._fields = {field.name: field for field in fields}
        assert len(self._fields) == len(fields), "two fields have the same name"
        self._set_by = {field.sets: field.name for field in fields if field.sets is not None}
        """Names of fields by the sampling parameters that they set."""
        self._required = [field.name for field in fields if field.is_required]

    def __iter__(self) -> Iterator[Field]:
        return iter(self._fields.values())

    def read(self, given: Mapping[str, Any], prefix: str = "", unknown: list[str] | None = None) -> dict[str, Any]:
        """The values that are given, each checked for its type. null is the same as absent. Raises HttpError.

        unknown: takes the names of fields that the route does not know; None: they are refused.
        """
        values = {}
        for name, value in given.items():
            if value is None:
                continue
            field = self._fields.get(name)
            param = prefix + name
            if field is None:
                if unknown is not None:
                    unknown.append(param)
                    continue
                raise HttpError(
                    400, f"{param[:200]}: is no field of this route", param=param[:200], code="unknown_field"
                )
            value = field.kind.read(value, param)
            if field.only is not None and value not in field.only:
                raise not_served(param)
            values[name] = value
        for name in self._required:
            if name not in values:
                raise HttpError(400, f"{prefix}{name}: is missing", param=prefix + name, code="missing_field")
        return values

    def set_params(self, values: Mapping[str, Any], params: inference_pb2.SamplingParams) -> None:
        """Sets the sampling parameters that the values give. Raises HttpError for values that no parameter can have."""
        for param, name in self._set_by.items():
            if name in values:
                set_param(params, param, values[name], name)

    def name_of(self, param: str) -> str | None:
        """The field that sets this sampling parameter; None: none does."""
        return self._set_by.get(param)


def set_param(params: inference_pb2.SamplingParams, name: str, value: Any, field: str) -> None:
    """Sets one sampling parameter, of any type. Raises HttpError that names the field."""
    try:
        if isinstance(value, list):
            getattr(params, name).extend(value)
        elif isinstance(value, dict):
            getattr(params, name).update(value)
        else:
            setattr(params, name, value)
    except (ValueError, TypeError):
        raise wrong(field, "holds a number that is out of range") from None


def _read_integer(value: Any, param: str) -> int:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise wrong(param, "is no integer")


def _read_number(value: Any, param: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise wrong(param, "is no number")
    return float(value)


def _read_as(kind: type, name: str) -> Read:
    def read(value: Any, param: str) -> Any:
        if type(value) is not kind:
            raise wrong(param, f"is no {name}")
        return value

    return read


def _list_of(entry: Kind) -> Kind:
    read_entry = entry.read

    def read(value: Any, param: str) -> list[Any]:
        if type(value) is not list:
            raise wrong(param, "is no array")
        if len(value) > MAX_ENTRIES:
            raise wrong(param, f"holds {len(value)} entries; accepted: up to {MAX_ENTRIES}")
        if set(map(type, value)) <= {entry.json_type}:
            return value  # A prompt may have a million entries.
        return [read_entry(each, f"{param}[{index}]") for index, each in enumerate(value)]

    return Kind({"type": "array", "items": entry.schema}, read)


def _read_stop(value: Any, param: str) -> list[str]:
    return [value] if type(value) is str else STRINGS.read(value, param)


def _read_logit_bias(value: Any, param: str) -> dict[int, float]:
    if type(value) is not dict:
        raise wrong(param, "is no object of token ids and numbers")
    if len(value) > MAX_LOGIT_BIAS_ENTRIES:
        raise wrong(param, f"holds {len(value)} entries; accepted: up to {MAX_LOGIT_BIAS_ENTRIES}")
    biases = {}
    for key, bias in value.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10:
            raise wrong(param, f"holds the key {key[:40]!r}; accepted: token ids")
        biases[int(key)] = _read_number(bias, f"{param}.{key}")
    return biases


def choice_of(*names: str) -> Kind:
    """One of several strings."""

    def read(value: Any, param: str) -> str:
        if value not in names:
            raise wrong(param, f"is {str(value)[:40]!r}; accepted: {', '.join(names)}")
        return str(value)

    return Kind({"type": "string", "enum": list(names)}, read)


def one_of(*kinds: Kind) -> Kind:
    """A value of the first kind that takes it."""

    def read(value: Any, param: str) -> Any:
        for kind in kinds[:-1]:
            try:
                return kind.read(value, param)
            except HttpError:
                continue
        return kinds[-1].read(value, param)

    return Kind({"anyOf": [kind.schema for kind in kinds]}, read)


def object_of(table: FieldTable) -> Kind:
    """An object with the fields of a table."""

    def read(value: Any, param: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise wrong(param, "is no object")
        return table.read(value, f"{param}.", [])

    return Kind(object_schema(table), read)


def object_schema(fields: Iterable[Field]) -> Schema:
    """JSON schema of an object with these fields. Those of which no value is served are left out."""
    properties = {}
    required = [field.name for field in fields if field.is_required]
    for field in fields:
        if field.only != ():
            described = {**field.kind.schema, "description": field.doc}
            properties[field.name] = described if field.only is None else {**described, "enum": list(field.only)}
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_INT32}
INTEGER = Kind({"type": "integer"}, _read_integer, int)
NUMBER = Kind({"type": "number"}, _read_number)
BOOLEAN = Kind({"type": "boolean"}, _read_as(bool, "boolean"))
STRING = Kind({"type": "string"}, _read_as(str, "string"), str)
OBJECT = Kind({"type": "object"}, _read_as(dict, "object"), dict)
ANYTHING = Kind({}, lambda value, _param: value)
STRINGS = _list_of(STRING)
INTEGERS = _list_of(INTEGER)
TOKEN_IDS = Kind({"type": "array", "items": TOKEN_ID}, INTEGERS.read)
OBJECTS = _list_of(OBJECT)
STRING_OR_STRINGS = Kind({"anyOf": [STRING.schema, STRINGS.schema]}, _read_stop)
LOGIT_BIAS = Kind({"type": "object", "additionalProperties": {"type": "number"}}, _read_logit_bias)
