"""`oneOf` whose options exclude each other is `anyOf`, which llguidance can follow.

It finds that out itself where the options have different types. Schemas of tagged unions, as pydantic writes them, tell
their options apart by constants: {"oneOf": [{"properties": {"kind": {"const": "a"}}, "required": ["kind"]}, ...]}.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

MAX_REFERENCES = 8
"""How far `$ref` is followed."""

Schema = dict[str, Any]
Scalar = tuple[type, Any]


def exclude_each_other(options: list[Any], root: Schema) -> bool:
    """Whether it is certain that no value satisfies two of the options. root: what `$ref` refers to."""
    forms = [list(_forms(option, root)) for option in options]
    return all(any(_exclude(a, b) for a in first for b in second) for first, second in combinations(forms, 2))


def _forms(option: Any, root: Schema) -> Iterator[Schema]:
    """The schemas that an option is made of: itself, and what it refers to. A value must satisfy all of them."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(option, dict):
            return
        yield option
        option = _referred(option.get("$ref"), root)


def _referred(reference: Any, root: Schema) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    place: Any = root
    for step in reference.removeprefix("#/").split("/"):
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
    return place


def _exclude(a: Schema, b: Schema) -> bool:
    if _differ(_types(a), _types(b)) or _differ(_values(a), _values(b)):
        return True
    if "object" not in (a.get("type"), b.get("type")):
        return False  # A value that is no object satisfies both.
    tags_of_a, tags_of_b = _tags(a), _tags(b)
    return any(_differ(tags_of_a[name], tags_of_b[name]) for name in tags_of_a.keys() & tags_of_b.keys())


def _differ(a: set[Any] | None, b: set[Any] | None) -> bool:
    return a is not None and b is not None and a.isdisjoint(b)


def _types(schema: Schema) -> set[str] | None:
    types = schema.get("type")
    if isinstance(types, str):
        types = [types]
    if not isinstance(types, list):
        return None
    return {"number" if name == "integer" else str(name) for name in types}


def _values(schema: Schema) -> set[Scalar] | None:
    """The values that a schema allows by `const` or `enum`; None: unknown, or not all are scalars."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return None
    if any(isinstance(value, dict | list) for value in values):
        return None
    # 1 and 1.0 are the same number, and True is none.
    return {(float, value) if type(value) in (int, float) else (type(value), value) for value in values}


def _tags(schema: Schema) -> dict[str, set[Scalar]]:
    """The required properties of an object that have fixed values."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    fixed = {name: _values(part) for name, part in properties.items() if name in required and isinstance(part, dict)}
    return {name: values for name, values in fixed.items() if values is not None}
