"""Describes a benchmark's run (machine, versions, commit, command), and writes and prints its result."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "pagewire",
    "torch",
    "triton",
    "transformers",
    "numba",
    "llguidance",
    "grpcio",
    "protobuf",
    "tokenizers",
    "uvloop",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> dict[str, Any]:
    """The hardware and what else was running on it."""
    return {
        "cpu": _cpu_info("model name"),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in _cpu_info("flags").split()],
        "num_cores": num_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
    }


def describe_software() -> dict[str, Any]:
    """Versions, and the state of the checkout."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def describe_run(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that is needed to judge and repeat a measurement."""
    return {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command_line()),
        "machine": describe_machine(),
        "software": describe_software(),
        "settings": dict(settings),
    }


def command_line() -> list[str]:
    """Returns this process's command line, without the path of the result."""
    words = [Path(sys.executable).name, os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


def save_result(name: str, settings: Mapping[str, Any], result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes a result beside all that is needed to judge and repeat it.

    Args:
        name: name of the file; a later run of the same name replaces it.
    """
    record = describe_run(name, settings) | {"result": dict(result)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=2, default=str) + "\n")
    Console().print(f"Result: {path}")
    return path


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows, numbers aligned to the right with three digits at least."""
    table = Table(title=title, box=None, padding=(0, 2), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(_format(cell) for cell in row))
    # A log file has no width, so that every column is printed.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every value of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def _format(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"


def _cpu_info(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # A copy of the sources on a machine without git.
        return ""
    return done.stdout.strip()
