"""Tries every fault on a cluster under load, prints a table and writes benchmarks/results/chaos.json: `make chaos`.

    python tests/chaos/run.py [--requests N] [--streams N] [--tokens N] [--out FILE] [FAULT ...]

FAULT is a part of a fault's name. The exit status is 1 if a request was lost or has brought something else than it
does undisturbed.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from chaos_faults import FAULTS, chaos_cluster, try_fault  # noqa: E402
from chaos_load import Row, specs, undisturbed  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "chaos.json"
HEADER = "| fault | requests | lost | differing | pause p50 s | pause max s |\n| --- | --- | --- | --- | --- | --- |"


async def run(args: argparse.Namespace) -> list[Row]:
    """All faults that are asked for, one after the other on one cluster."""
    asked = specs(args.streams, args.tokens)
    names = [name for name in FAULTS if not args.faults or any(part in name for part in args.faults)]
    rows = []
    async with chaos_cluster() as chaos:
        expected = await undisturbed(chaos.targets, asked)
        print(HEADER, flush=True)
        for name in names:
            row = await try_fault(chaos, name, FAULTS[name], asked, expected, args.requests // len(names))
            rows.append(row)
            keep(row, args.out)
            print(row.line(), flush=True)
            for what in (*row.errors, *row.differing):
                print(f"    {what}", flush=True)
            if row.num_lost or row.num_differing:
                print(chaos.log(), file=sys.stderr)
    return rows


def keep(row: Row, path: Path) -> None:
    """Writes a row beside those of other faults, which may be of another day."""
    run = {"date": time.strftime("%F", time.gmtime()), "num_cores": os.cpu_count(), "load_average": os.getloadavg()[1]}
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {each["fault"]: each for each in [*kept, {**asdict(row), **run}]}
    path.write_text(json.dumps({"rows": [rows[name] for name in FAULTS if name in rows]}, indent=1) + "\n")


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="over all faults (default %(default)s)")
    parser.add_argument("--streams", type=int, default=64, help="at a time (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=200, help="most of a stream (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("faults", nargs="*", metavar="FAULT")
    args = parser.parse_args()
    rows = asyncio.run(run(args))
    return int(any(row.num_lost or row.num_differing for row in rows))


if __name__ == "__main__":
    sys.exit(main())
