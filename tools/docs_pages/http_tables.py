"""The tables of docs/http.md: the fields of every route that generates, from the tables that requests are read by."""

from collections.abc import Iterable
from pathlib import Path

from pagewire_router.http_front.fields import Field, FieldTable
from pagewire_router.http_front.routes import OF_THE_MODEL

from docs_pages.markdown import between, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "http.md"
WITHOUT_EFFECT = "Accepted"
"""How the descriptions of fields begin that change nothing."""


def page() -> str:
    """Returns docs/http.md with the current tables."""
    rows = [
        (f"`{operation.path}`", _names(served), _names(unused), _names(refused))
        for operation in OF_THE_MODEL
        if operation.fields is not None
        for served, unused, refused in [_sorted(operation.fields)]
    ]
    header = ("route", "served", "accepted without effect", "refused by name, but for the values given")
    return between(PAGE.read_text(), "fields", table(header, rows), PAGE)


def _sorted(fields: FieldTable) -> tuple[list[Field], list[Field], list[Field]]:
    """The fields that are served, those without effect, and those of which most values are refused."""
    unused = [field for field in fields if field.doc.startswith(WITHOUT_EFFECT)]
    refused = [field for field in fields if field.only is not None and field not in unused]
    return [field for field in fields if field not in unused and field not in refused], unused, refused


def _names(fields: Iterable[Field]) -> str:
    return ", ".join(f"`{field.name}`{_values(field)}" for field in fields)


def _values(field: Field) -> str:
    if not field.only or field.doc.startswith(WITHOUT_EFFECT):
        return ""
    return f" ({', '.join(str(value).lower() for value in field.only)})"
