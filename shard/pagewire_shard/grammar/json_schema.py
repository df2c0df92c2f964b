"""JSON schemas: parsing, options, and where in a schema something stands."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pagewire_shard.grammar.ecma_pattern import spell_out_whitespace
from pagewire_shard.grammar.errors import SourceRefused
from pagewire_shard.grammar.one_of import exclude_each_other

Schema = dict[str, Any]

SCHEMA_KEYWORDS = frozenset(
    {
        "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
        "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
"""Keywords whose value is a schema; that of `items` may be a list of schemas."""
LIST_KEYWORDS = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
"""Keywords whose value is a list of schemas."""
MAP_KEYWORDS = frozenset(
    {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"}
)
"""Keywords whose value is an object of schemas."""


WHITESPACE = r"(\r?\n[ \t]{0,40}|[ \t]{1,2})"
"""Whitespace between the tokens of JSON: a new line with its indent, or a space or two. Where it has no end, models
that were not trained on JSON write nothing else."""


@dataclass(frozen=True, slots=True)
class JsonOptions:
    """How JSON is written, and how schemas are read."""

    any_whitespace: bool = True
    whitespace_pattern: str | None = None
    additional_properties: bool = True
    """False: objects whose schema names properties have no others, unless it says something about them."""
    coerce_one_of: bool = False
    lenient: bool = False


def parse_schema(text: str) -> Schema:
    """The schema that a text holds. Raises SourceRefused."""
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise SourceRefused(f"the JSON schema is not valid JSON: {error}") from error
    except RecursionError:
        raise SourceRefused("the JSON schema is nested too deeply") from None
    return schema_of(schema)


def schema_of(schema: Any) -> Schema:
    """A schema that has been read, as an object. Raises SourceRefused."""
    if schema is True:
        return {}
    if schema is False:
        raise SourceRefused("the JSON schema is `false`, which no value satisfies")
    if not isinstance(schema, dict):
        raise SourceRefused("the JSON schema is no object")
    return schema


def guided_schema(schema: Schema, options: JsonOptions) -> Schema:
    """A copy of the schema with the options as llguidance reads them, in place of what it says of them itself."""
    schema = json.loads(json.dumps(schema))
    for _, part in list(subschemas(schema)):
        if not options.additional_properties and ("properties" in part or "patternProperties" in part):
            part.setdefault("additionalProperties", False)
        if isinstance(part.get("pattern"), str):
            part["pattern"] = spell_out_whitespace(part["pattern"])
        if isinstance(part.get("patternProperties"), dict):
            spelled_out = {spell_out_whitespace(name): each for name, each in part["patternProperties"].items()}
            part["patternProperties"] = spelled_out
        options_of_one = part.get("oneOf")
        if isinstance(options_of_one, list) and "anyOf" not in part and exclude_each_other(options_of_one, schema):
            part["anyOf"] = part.pop("oneOf")
    guidance: dict[str, Any] = {
        "coerce_one_of": options.coerce_one_of,
        "lenient": options.lenient,
        "whitespace_flexible": options.any_whitespace,
    }
    if options.any_whitespace:
        guidance["whitespace_pattern"] = options.whitespace_pattern or WHITESPACE
    return {**schema, "x-guidance": guidance}


def place_of(schema: Schema, keyword: str) -> str | None:
    """JSON pointer of the first schema that has a keyword, in the order of the text; None: none has."""
    return next((place for place, part in subschemas(schema) if keyword in part), None)


def subschemas(schema: Any, place: str = "#") -> Iterator[tuple[str, Schema]]:
    """Yields a schema and all that it contains, with their JSON pointers."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for keyword, value in schema.items():
        if keyword in MAP_KEYWORDS and isinstance(value, dict):
            for name, part in value.items():
                escaped = name.replace("~", "~0").replace("/", "~1")
                yield from subschemas(part, f"{place}/{keyword}/{escaped}")
        elif keyword in LIST_KEYWORDS and isinstance(value, list):
            for i, part in enumerate(value):
                yield from subschemas(part, f"{place}/{keyword}/{i}")
        elif keyword in SCHEMA_KEYWORDS:
            yield from subschemas(value, f"{place}/{keyword}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
