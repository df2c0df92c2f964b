"""Writes the table of values into helm/pagewire/README.md, from the "# --" comments in values.yaml.

Usage: chart_readme.py [--check]; with --check it changes nothing and fails if the table is out of date.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHART = Path(__file__).resolve().parent.parent / "helm" / "pagewire"
BEGIN, END = "<!-- values -->\n", "<!-- end of values -->"
MARK = "# -- "
INDENT = 2


@dataclass
class Value:
    """One row of the table."""

    path: str
    meaning: str
    default: list[str] = field(default_factory=list)
    """The lines of the default, in YAML."""


def documented_values(text: str) -> Iterator[Value]:
    """Returns every key that has a "# --" comment above it, in order.

    Understands the one style that values.yaml is written in: mappings indented by two spaces, a comment right above the
    key it explains, and lists or mappings as default on the lines below.
    """
    path: list[str] = []
    comment: list[str] = []
    value: Value | None = None
    for line in text.splitlines():
        depth, content = (len(line) - len(line.lstrip())) // INDENT, line.strip()
        if content.startswith("#"):
            if content.startswith(MARK):
                comment = [content.removeprefix(MARK)]
            elif comment:
                comment.append(content.removeprefix("# "))
        elif value is not None and depth >= len(path):
            value.default.append(content)
        elif content:
            if value is not None:
                yield value
            key, _, rest = content.partition(":")
            path = [*path[:depth], key]
            value = (
                Value(".".join(path), " ".join(comment), [rest.strip()] if rest.strip() else []) if comment else None
            )
            comment = []
    if value is not None:
        yield value


def table(text: str) -> str:
    """The values as Markdown."""
    rows = ["| value | default | what it is |\n| --- | --- | --- |\n"]
    for value in documented_values(text):
        default = " ".join(value.default).replace("|", "\\|")
        rows.append(f"| `{value.path}` | `{default}` | {value.meaning} |\n")
    return "".join(rows)


def main() -> int:
    """Rewrites the table between the markers."""
    readme = CHART / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not (before and after):
        raise SystemExit(f"{readme} has lost its markers")
    written = f"{before}{BEGIN}\n{table((CHART / 'values.yaml').read_text())}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if written != text:
            print("helm/pagewire/README.md: run tools/chart_readme.py")
        return int(written != text)
    readme.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
