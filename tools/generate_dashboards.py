"""Writes the Grafana dashboards of the chart from tools/dashboards/, where a panel is a few words and a query.

With --check nothing is written: it says which files are not as their sources are.
"""

import argparse
import json
import sys
from pathlib import Path

from dashboards import cache, latency, overview, shards

FOLDER = Path(__file__).resolve().parent.parent / "helm" / "pagewire" / "dashboards"
DASHBOARDS = (overview.DASHBOARD, latency.DASHBOARD, cache.DASHBOARD, shards.DASHBOARD)


def main() -> int:
    """Writes or checks the files; the exit status is 1 if one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which files differ")
    args = parser.parse_args()
    stale = []
    for dashboard in DASHBOARDS:
        path, text = FOLDER / f"{dashboard.name}.json", json.dumps(dashboard.to_json(), indent=1) + "\n"
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not args.check:
                path.write_text(text)
    if args.check and stale:
        print(f"not as tools/dashboards/ says, run make fmt: {', '.join(stale)}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
