"""Writes the generated pages of docs/: every flag, every message of the protocols, every measured figure.

They are committed, so that they can be read without building the site and so that a change of an interface shows in
review. With --check nothing is written: it says which pages are not as their sources are.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from docs_pages import (
    benchmark_tables,
    cli_reference,
    error_reference,
    http_tables,
    metrics_tables,
    proto_reference,
    reliability_table,
    sampling_table,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "benchmarks.md": benchmark_tables.page,
    "http.md": http_tables.page,
    "metrics.md": metrics_tables.page,
    "reliability.md": reliability_table.page,
    "sampling.md": sampling_table.page,
    "reference/pagewire.md": cli_reference.client_page,
    "reference/pagewire-router.md": cli_reference.router_page,
    "reference/pagewire-shard.md": cli_reference.shard_page,
    "reference/inference.md": proto_reference.inference_page,
    "reference/shard.md": proto_reference.shard_page,
    "reference/errors.md": error_reference.page,
}


def main() -> int:
    """Writes or checks the pages; the exit status is 1 if a checked page is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which pages differ")
    args = parser.parse_args()
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not args.check:
                path.write_text(text)
    if args.check and stale:
        print(f"not as their sources are, run make fmt: {', '.join(stale)}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
