"""The table of docs/reliability.md: what `make chaos` has found, from benchmarks/results/chaos.json."""

import json
from pathlib import Path

from docs_pages.markdown import between, table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULT = ROOT / "benchmarks" / "results" / "chaos.json"
HEADER = (
    "fault",
    "requests",
    "streams at a time",
    "lost",
    "differing",
    "pause p50, s",
    "longest pause, s",
    "load average",
)


def page() -> str:
    """Returns docs/reliability.md with the current table."""
    rows = [
        (
            row["fault"],
            f"{row['num_requests']:,}",
            str(row["num_disturbed"]),
            str(row["num_lost"]),
            str(row["num_differing"]),
            f"{row['pause_p50_s']:.2f}",
            f"{row['pause_max_s']:.2f}",
            f"{row['load_average']:.0f}",
        )
        for row in json.loads(RESULT.read_text())["rows"]
    ]
    return between(PAGE.read_text(), "faults", table(HEADER, rows), PAGE)
