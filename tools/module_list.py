"""Keeps the list of modules in docs/architecture.md: one line for each, the first sentence of its docstring.

Without arguments it writes the list; with --check it only says whether it is up to date.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = (
    ("client/pagewire", "The Python client"),
    ("router/pagewire_router", "The router"),
    ("shard/pagewire_shard", "The shard"),
    ("kernels/pagewire_kernels", "The kernels"),
)
GENERATED = ROOT / "client" / "pagewire" / "v1"
BEGIN, END = "<!-- modules: written by tools/module_list.py -->\n", "<!-- end of modules -->\n"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"])")


def summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return SENTENCE_END.split(paragraph)[0]


def module_lines() -> Iterator[str]:
    """The list, in lines of Markdown."""
    for package, title in PACKAGES:
        yield f"\n### {title}: `{package}`\n\n| module | what it is |\n| --- | --- |\n"
        for path in sorted((ROOT / package).rglob("*.py")):
            text = summary(path)
            if path.is_relative_to(GENERATED) or path.name == "__main__.py" or not text:
                continue
            name = path.relative_to(ROOT / package).as_posix().removesuffix("/__init__.py")
            if name != "__init__.py":
                yield f"| `{name}` | {text.replace('|', chr(92) + '|')} |\n"
    yield "\n"


def updated(page: str) -> str:
    """The page with its list replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE} lacks the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return before + begin + "".join(module_lines()) + end + after


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the list is out of date")
    args = parser.parse_args()
    page = PAGE.read_text()
    if page == updated(page):
        return 0
    if args.check:
        print(f"{PAGE.relative_to(ROOT)} does not list the modules as they are: run make fmt")
        return 1
    PAGE.write_text(updated(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
