"""Pieces of Markdown that the generated pages share."""

from collections.abc import Iterable, Sequence
from pathlib import Path

NOTE = "<!-- Written by tools/generate_docs.py: change the source it names, then run `make fmt`. -->\n"


def cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def between(text: str, name: str, content: str, page: Path) -> str:
    """The text of a page with other content between the marks of this name. Ends the process if they are missing."""
    begin, end = f"<!-- {name}: written by tools/generate_docs.py -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f"{page} lacks the lines {begin.strip()!r} and {end.strip()!r}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def figure(value: float) -> str:
    """A measured number, to three digits."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def mebibytes(num_bytes: float) -> str:
    """Bytes in MiB."""
    return f"{num_bytes / 2**20:,.0f}"
