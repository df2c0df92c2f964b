"""The measured figures of a run of benchmarks/gpu.py, which consists of parts."""

from collections.abc import Iterator, Mapping
from typing import Any

from docs_pages.markdown import cell, figure, table

Rows = list[Mapping[str, Any]]

TITLES = {
    "ceilings": "What the device can do, measured in the same run",
    "start": "Start",
    "prompt": "Prompts, in the whole engine",
    "engine": "Decode steps, in the whole engine",
    "workload": "The same work on different engines",
    "attention": "Attention",
    "kernels": "Other kernels",
}
"""Titles of the groups that are shown, in this order. Profiles are in the result file only."""
WORKLOADS = ("offline", "service", "transformers")
"""Groups of parts that share one table."""
COLUMNS = {
    "start_s": "ready, s",
    "capture_s": "of which graphs, s",
    "num_graphs": "graphs",
    "median_us": "time, µs",
    "alone_us": "alone, µs",
    "ttft_ms": "first token, ms",
    "tpot_ms": "step, ms",
    "roofline_ms": "roofline, ms",
    "over_roofline": "times the roofline",
    "tokens_per_s": "tokens per second",
    "output_tokens_per_s": "output tokens per second",
    "gbytes_per_s": "GB/s",
    "tflops": "TFLOP/s",
    "of_roofline": "of the roofline",
    "of_matmul": "of the matmul rate",
    "speed_up": "times torch",
}
"""Columns that are shown, of those that parts have."""
SHARES = ("of_roofline", "of_matmul")
RATES = {"bytes/s": ("GB/s", 1e9), "FLOP/s": ("TFLOP/s", 1e12)}


def gpu_tables(result: Mapping[str, Any]) -> Iterator[str]:
    """A table for each group of parts, and what failed or was left out."""
    parts: Mapping[str, Any] = result["parts"]
    groups: dict[str, Rows] = {}
    for name, part in parts.items():
        group = name.partition(":")[0]
        groups.setdefault("workload" if group in WORKLOADS else group, []).extend(part["rows"])
    for group, title in TITLES.items():
        if rows := groups.get(group):
            yield f"**{title}**\n\n{_group_table(rows)}"
    unmeasured = [(name, part) for name, part in parts.items() if part["state"] != "done"]
    missing = [(f"`{name}`", cell(part["error"] or part["skipped"])) for name, part in unmeasured]
    if missing:
        yield "**Not measured in this run**\n\n" + table(("part", "why"), missing)


def _group_table(rows: Rows) -> str:
    if "unit" in rows[0]:
        rates = [(cell(row["name"]), row["rate"], *RATES[row["unit"]]) for row in rows]
        return table(("", "rate"), [(name, f"{figure(rate / scale)} {unit}") for name, rate, unit, scale in rates])
    # `times torch` divides by torch's rows.
    ours = [row for row in rows if not row["name"].startswith("torch, ")]
    columns = [column for column in COLUMNS if any(row.get(column) for row in ours)]
    header = ["", *(COLUMNS[column] for column in columns)]
    return table(header, [[cell(row["name"]), *(_value(row, column) for column in columns)] for row in ours])


def _value(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not value:
        return ""
    if column in SHARES:
        return f"{figure(100 * value)} %"
    return figure(value)
