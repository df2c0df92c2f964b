"""Pieces of Markdown that the generated pages share."""

from collections.abc import Iterable, Sequence

NOTE = "<!-- Written by tools/generate_docs.py: change the source it names, then run `make fmt`. -->\n"


def cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figure(value: float) -> str:
    """A measured number, to three digits."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def mebibytes(num_bytes: float) -> str:
    """Bytes in MiB."""
    return f"{num_bytes / 2**20:,.0f}"
