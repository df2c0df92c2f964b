"""Whether what a random model writes within a schema is an instance of it, by the package jsonschema."""

import decimal
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import jsonschema
from jsonschema.validators import extend
from pagewire_shard.grammar.ecma_pattern import spell_out_whitespace

decimal.getcontext().prec = 400
"""Enough for every quotient of two numbers that a sample holds."""


class NotJudged(Exception):
    """The validator cannot read the schema."""


@dataclass(slots=True)
class Samples:
    """What became of one schema's samples."""

    num_valid: int = 0
    num_unfinished: int = 0
    """Not at their end when the limit of tokens was reached."""
    faults: list[str] = field(default_factory=list)
    """Of each sample that is not valid: the text, and why."""


def fault_finder(schema: Any) -> Callable[[str], str | None]:
    """Returns what finds the fault of a text; None: it is an instance of the schema."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    validator = _Validator(exact, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)

    def fault(text: str) -> str | None:
        try:
            value = json.loads(text, parse_float=_number)
        except ValueError as error:
            return f"no JSON: {error}"
        try:
            found = next(validator.iter_errors(value), None)
        except re.error as unreadable:
            raise NotJudged(f"Python cannot read a pattern: {unreadable}") from unreadable
        return None if found is None else str(found.message)

    return fault


def _number(text: str) -> Decimal:
    """The number exactly; one whose exponent is beyond all reason as the largest of its sign."""
    try:
        return Decimal(text)
    except decimal.InvalidOperation:
        return Decimal("1e100000").copy_sign(Decimal(-1 if text[0] == "-" else 1))


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[jsonschema.ValidationError]:
    """JSON schema's patterns are ECMA 262's, in which \\w and \\d are ASCII, and \\s is not."""
    if isinstance(instance, str) and not re.search(spell_out_whitespace(pattern), instance, re.ASCII):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator = extend(jsonschema.Draft202012Validator, {"pattern": _pattern})
