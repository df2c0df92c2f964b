"""The table of docs/sampling.md: every sampling parameter, from pagewire.parameter_table."""

from pathlib import Path

from pagewire.parameter_table import PARAMETERS

from docs_pages.markdown import between, cell, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sampling.md"


def page() -> str:
    """Returns docs/sampling.md with the current table."""
    rows = (
        (
            f"`{parameter.name}`",
            parameter.kind.value,
            parameter.default_text,
            cell(parameter.limits_text),
            cell(parameter.meaning),
        )
        for parameter in PARAMETERS
    )
    header = ("parameter", "type", "default", "accepted", "meaning")
    return between(PAGE.read_text(), "sampling parameters", table(header, rows), PAGE)
