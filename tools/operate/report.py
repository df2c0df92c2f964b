"""Keeps the results of `make test-operate`: tests by file, skipped tests with their reasons, and recorded figures.

Reads the JUnit file that pytest wrote and writes benchmarks/results/operate.json, with the machine and the versions.
"""

import sys
import xml.etree.ElementTree as ET
from itertools import takewhile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from machine import save_result  # noqa: E402


def read_cases(junit: Path) -> dict[str, dict[str, Any]]:
    """Returns by file: tests that passed, failed and were skipped with their reasons, seconds, recorded figures."""
    files: dict[str, dict[str, Any]] = {}
    for case in ET.parse(junit).iter("testcase"):
        # The name of a class comes last, for tests in classes.
        modules = takewhile(str.islower, case.get("classname", "").split("."))
        name = "/".join(modules) + ".py"
        file = files.setdefault(
            name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "reasons": [], "figures": {}}
        )
        file["seconds"] = round(file["seconds"] + float(case.get("time", 0)), 1)
        if (skipped := case.find("skipped")) is not None:
            file["skipped"] += 1
            file["reasons"] = sorted({*file["reasons"], skipped.get("message", "")})
        elif case.find("failure") is not None or case.find("error") is not None:
            file["failed"] += 1
        else:
            file["passed"] += 1
        for figure in case.iter("property"):
            file["figures"][figure.get("name", "")] = float(figure.get("value", "nan"))
    return dict(sorted(files.items()))


def main() -> int:
    """Writes the result; the exit status is 1 if a test failed."""
    cases = read_cases(Path(sys.argv[1]))
    save_result("operate", {}, {"files": cases})
    return int(any(file["failed"] for file in cases.values()) or not cases)


if __name__ == "__main__":
    sys.exit(main())
