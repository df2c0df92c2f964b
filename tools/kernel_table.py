"""Compiles every Triton kernel for every GPU generation, without a GPU, and keeps a table of their resources.

Without arguments it rewrites the table of the installed Triton version; with --check it says what differs from it.
docs/kernels.md explains the figures.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from kernel_aot import compiling as aot

TABLE = Path(__file__).resolve().parent / "kernel_aot" / "table.json"

Table = dict[str, dict[str, dict[str, dict[str, int]]]]
"""Triton's minor version -> case -> target -> as_row's fields."""


def triton_version() -> str:
    """The minor version: patch releases generate the same code."""
    import triton

    return ".".join(triton.__version__.split(".")[:2])


def read_table() -> Table:
    """The committed table."""
    table: Table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return table


def write_table(table: Table) -> None:
    """One line for each case, so that a change shows as a change of lines."""
    versions = []
    for version in sorted(table):
        lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(rows)}" for case, rows in sorted(table[version].items()))
        versions.append(f" {json.dumps(version)}: {{\n{lines}\n }}")
    TABLE.write_text("{\n" + ",\n".join(versions) + "\n}\n")


def differences(expected: Mapping[aot.Job, aot.Resources | None], found: Mapping[aot.Job, aot.Resources]) -> list[str]:
    """One line for each figure that is not as expected; None: the table does not have the case."""
    lines = []
    for job, resources in found.items():
        old = expected.get(job)
        if old is None:
            lines.append(f"{job[0]} on sm_{job[1]}: not in the table")
            continue
        before, after = aot.as_row(old), aot.as_row(resources)
        changes = [
            f"{name} {before.get(name, 0)} -> {after.get(name, 0)}"
            for name in aot.Resources.__slots__
            if before.get(name, 0) != after.get(name, 0)
        ]
        if changes:
            lines.append(f"{job[0]} on sm_{job[1]}: {', '.join(changes)}")
    return lines


def expected_resources(table: Table, version: str) -> dict[aot.Job, aot.Resources | None]:
    """The table's figures of one Triton version, by job."""
    return {
        (case, int(target)): aot.from_row(row)
        for case, rows in table.get(version, {}).items()
        for target, row in rows.items()
    }


def violations(found: Mapping[aot.Job, aot.Resources], failed: Mapping[aot.Job, str]) -> list[str]:
    """One line for each kernel that does not compile, takes too much shared memory, spills without leave, or
    has wrong descriptors."""
    cases = aot.collect()
    lines = [f"{key} on sm_{target}: does not compile: {reason}" for (key, target), reason in failed.items()]
    for (key, target), resources in found.items():
        limit = aot.SHARED_MEMORY_LIMIT_BYTES[target]
        if resources.shared_bytes > limit:
            lines.append(f"{key} on sm_{target}: {resources.shared_bytes} bytes of shared memory, at most {limit}")
        if resources.spills and not cases[key].may_spill:
            lines.append(f"{key} on sm_{target}: {resources.spills} loads and stores of spilled registers")
        if resources.broken_descriptors:
            lines.append(f"{key} on sm_{target}: the compiler got {resources.broken_descriptors} descriptors wrong")
    return lines


def main() -> int:
    """Writes or checks the table; the exit status is 1 if it differs or a kernel breaks a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    parser.add_argument("--processes", type=int, metavar="N", help="compilers at a time (default: one for each core)")
    args = parser.parse_args()
    cases = aot.collect()
    found, failed = aot.measure(aot.jobs(cases), args.processes)
    version, table = triton_version(), read_table()
    changed = differences(expected_resources(table, version), found)
    gone = [f"{case}: no longer there" for case in table.get(version, {}) if case not in cases]
    broken = violations(found, failed)
    print("".join(f"{line}\n" for line in (*changed, *gone, *broken)), end="")
    print(
        f"{len(found)} compiled kernels with Triton {version}: {len(changed) + len(gone)} changed, {len(broken)} wrong"
    )
    if not args.check:
        table[version] = {}
        for (case, target), resources in found.items():
            table[version].setdefault(case, {})[str(target)] = aot.as_row(resources)
        write_table(table)
    return 1 if broken or (args.check and (changed or gone)) else 0


if __name__ == "__main__":
    sys.exit(main())
