"""Draws the chart's dashboards without Grafana: runs their queries against a Prometheus and plots the results.

plot_dashboards.py http://127.0.0.1:9090 docs/images --start 1764000000 --end 1764000600
"""

import argparse
import io
import json
import math
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator
from PIL import Image

DASHBOARDS = Path(__file__).resolve().parent.parent / "helm" / "pagewire" / "dashboards"
NUM_POINTS = 240
GRID_WIDTH = 24
CELL_INCHES = 0.62
"""Width of one of a dashboard's 24 columns."""
ROW_INCHES = 0.36
"""Height of one of its rows."""
MAX_LEGEND_LINES = 6
TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
SIZE_UNITS = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


class Source:
    """A Prometheus, and the time to look at."""

    def __init__(self, url: str, start_s: float, end_s: float, rate_interval: str) -> None:
        self._url = url
        self._start_s, self._end_s = start_s, end_s
        self._variables = {"$namespace": ".*", "$job": ".*", "$__rate_interval": rate_interval}

    def series(self, target: dict[str, Any]) -> list[tuple[str, list[float], list[float]]]:
        """Legend, seconds since the start, and values of each line of a query."""
        lines = []
        for series in self._query(target["expr"]):
            times = [float(second) - self._start_s for second, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            lines.append((_legend(target["legendFormat"], series["metric"]), times, values))
        return lines

    def _query(self, expr: str) -> list[dict[str, Any]]:
        for variable, value in self._variables.items():
            expr = expr.replace(variable, value)
        step_s = max((self._end_s - self._start_s) / NUM_POINTS, 1.0)
        parameters = {"query": expr, "start": self._start_s, "end": self._end_s, "step": step_s}
        url = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result


def _legend(template: str, labels: dict[str, str]) -> str:
    text = template
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return "" if text == "__auto" else text


def _format(unit: str, value: float) -> str:
    if unit == "percentunit":
        return f"{100 * value:g} %"
    units = TIME_UNITS if unit == "s" else SIZE_UNITS if unit == "bytes" else ()
    for size, name in units:
        if abs(value) >= size:
            return f"{value / size:.4g} {name}"
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def draw(dashboard: dict[str, Any], source: Source, path: Path) -> None:
    """One picture with the dashboard's panels where Grafana would have them; tables are left out."""
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "table"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(GRID_WIDTH * CELL_INCHES, height * ROW_INCHES + 0.5), dpi=100)
    figure.suptitle(dashboard["title"], x=0.01, y=1 - 0.12 / figure.get_figheight(), ha="left", va="top", weight="bold")
    top = 1 - 0.5 / figure.get_figheight()
    for panel in panels:
        grid = panel["gridPos"]
        left, bottom = grid["x"] / GRID_WIDTH, top - top * (grid["y"] + grid["h"]) / height
        width, tall = grid["w"] / GRID_WIDTH, top * grid["h"] / height
        if panel["type"] == "row":
            figure.text(left + 0.01, bottom + tall / 2, panel["title"], va="center", weight="bold", color="0.35")
            continue
        margins = (0.35, 0.15, 0.1, 0.35) if panel["type"] == "stat" else (0.75, 0.35, 0.15, 0.4)
        inches_x, inches_y = figure.get_figwidth(), figure.get_figheight()
        axes = figure.add_axes(
            (
                left + margins[0] / inches_x,
                bottom + margins[1] / inches_y,
                width - (margins[0] + margins[2]) / inches_x,
                tall - (margins[1] + margins[3]) / inches_y,
            )
        )
        axes.set_title(panel["title"], fontsize=9, loc="left")
        {"stat": _draw_stat, "heatmap": _draw_heatmap, "timeseries": _draw_lines}[panel["type"]](axes, panel, source)
    picture = io.BytesIO()
    figure.savefig(picture)
    plt.close(figure)
    # Few colours make the file a third of the size.
    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def _draw_stat(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    ((_, _, values), *_) = source.series(panel["targets"][0])
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.axis("off")
    axes.text(0.0, 0.45, _format(unit, values[-1]), fontsize=20, va="center", color="tab:green")


def _draw_lines(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    lines = [line for target in panel["targets"] for line in source.series(target)]
    if defaults["custom"]["stacking"]["mode"] == "normal" and lines:
        times = sorted({second for _, seconds, _ in lines for second in seconds})
        stacks = []
        for _, seconds, values in lines:
            known = dict(zip(seconds, values, strict=True))
            stacks.append([0.0 if math.isnan(known.get(t, 0.0)) else known.get(t, 0.0) for t in times])
        axes.stackplot(times, stacks, labels=[legend for legend, _, _ in lines], alpha=0.7)
    else:
        for legend, seconds, values in lines:
            axes.plot(seconds, values, label=legend, linewidth=1)
    axes.set_ylim(0, defaults.get("max"))
    _set_axes(axes, defaults["unit"])
    if 0 < len(lines) <= MAX_LEGEND_LINES and any(legend for legend, _, _ in lines):
        axes.legend(fontsize=7, loc="upper left", framealpha=0.6)


def _draw_heatmap(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    lines = source.series(panel["targets"][0])
    buckets = sorted(((float(legend), seconds, values) for legend, seconds, values in lines), key=lambda line: line[0])
    times = buckets[-1][1]
    rows, below = [], [0.0] * len(times)
    for _, seconds, values in buckets:
        known = dict(zip(seconds, values, strict=True))
        total = [known.get(t, 0.0) for t in times]
        rows.append([max(a - b, 0.0) for a, b in zip(total, below, strict=True)])
        below = total
    used = [i for i, row in enumerate(rows) if any(row)]
    low, high = max(min(used, default=0) - 2, 0), min(max(used, default=0) + 3, len(rows) - 1)
    axes.pcolormesh(times, range(low, high), rows[low:high], cmap="Oranges", shading="nearest")
    ticks = range(low, high, max((high - low) // 8, 1))
    axes.set_yticks(list(ticks), [_format("s", buckets[i][0]) for i in ticks], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("seconds", fontsize=7)


def _set_axes(axes: Axes, unit: str) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format(unit, value)))
    if unit == "bytes":
        axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(axes.get_ylim()[1] / 6))))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.set_xlabel("seconds", fontsize=7)


def main() -> None:
    """Draws every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--start", type=float, default=time.time() - 600, help="seconds since the epoch")
    parser.add_argument("--end", type=float, default=time.time(), help="seconds since the epoch")
    parser.add_argument("--rate-interval", default="10s", help="what $__rate_interval stands for")
    args = parser.parse_args()
    source = Source(args.prometheus, args.start, args.end, args.rate_interval)
    for path in sorted(DASHBOARDS.glob("*.json")):
        draw(json.loads(path.read_text()), source, args.folder / f"dashboard-{path.stem}.png")


if __name__ == "__main__":
    main()
