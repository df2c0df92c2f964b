"""Draws a trace as a waterfall, from the spans that a trace backend's REST API answered.

make test-operate leaves such an answer in .operate/phoenix/trace.json; docs/images/trace.png is made of one:
python tools/trace_picture.py .operate/phoenix/trace.json docs/images/trace.png
"""

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

Span = dict[str, Any]
COLORS = {"client": "#7a7a7a", "router": "#2f6db5", "shard": "#d9822b"}
EVENT_COLOR = "#b00020"


def milliseconds(time: str, start: str) -> float:
    """Returns the milliseconds from start to time."""
    return (datetime.fromisoformat(time) - datetime.fromisoformat(start)).total_seconds() * 1000


def ordered(spans: list[Span]) -> list[tuple[Span, int]]:
    """Returns the spans with their depths: parents before children, children in order of start."""
    rows: list[tuple[Span, int]] = []

    def add(parent_id: str | None, depth: int) -> None:
        children = [span for span in spans if span["parent_id"] == parent_id]
        for span in sorted(children, key=lambda child: (child["start_time"], child["end_time"])):
            rows.append((span, depth))
            add(span["context"]["span_id"], depth + 1)

    add(None, 0)
    return rows


def process_of(span: Span, spans: list[Span]) -> str:
    """Returns the process of a span, derived from names and parents, since the backend's API does not have it."""
    if span["parent_id"] is None:
        return "client"
    parent = next(other for other in spans if other["context"]["span_id"] == span["parent_id"])
    return "shard" if "sequence" in (span["name"], parent["name"]) else "router"


def draw(spans: list[Span], path: Path) -> None:
    """Writes the picture."""
    rows = ordered(spans)
    start = rows[0][0]["start_time"]
    figure, axes = pyplot.subplots(figsize=(11, 0.9 + 0.34 * len(rows)))
    total_ms = milliseconds(rows[0][0]["end_time"], start)
    for row, (span, depth) in enumerate(rows):
        begin_ms, end_ms = milliseconds(span["start_time"], start), milliseconds(span["end_time"], start)
        width_ms = max(end_ms - begin_ms, total_ms / 500)
        axes.barh(row, width_ms, left=begin_ms, height=0.62, color=COLORS[process_of(span, spans)])
        axes.text(-0.3 * total_ms, row, "    " * depth + span["name"], ha="left", va="center", fontsize=9)
        axes.text(begin_ms + width_ms, row, f" {end_ms - begin_ms:.1f} ms", ha="left", va="center", fontsize=7.5)
        for event in span["events"]:
            at_ms = milliseconds(event["timestamp"], start)
            axes.plot([at_ms, at_ms], [row - 0.42, row + 0.42], color=EVENT_COLOR, linewidth=1.5)
            axes.text(at_ms, row + 0.45, event["name"], color=EVENT_COLOR, fontsize=7.5, ha="left", va="top")
    axes.set_ylim(len(rows) - 0.4, -0.9)
    axes.set_xlim(0, total_ms * 1.09)
    axes.set_yticks([])
    axes.set_xlabel("milliseconds since the client's call")
    axes.spines[["left", "right", "top"]].set_visible(False)
    handles = [Patch(color=color, label=name) for name, color in COLORS.items()]
    axes.legend(handles=handles, loc="lower left", frameon=False)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def main() -> None:
    """Reads the spans and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spans", type=Path, help="JSON: the spans of one trace")
    parser.add_argument("picture", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    draw(json.loads(arguments.spans.read_text()), arguments.picture)


if __name__ == "__main__":
    main()
