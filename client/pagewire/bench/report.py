"""Shows a result as a table on the terminal, a JSON file and a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagewire.bench.metrics import DISTRIBUTIONS, RequestOutcome, percentile, samples_s, tokens_per_second

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOTALS = (
    ("Completed requests", "completed", "{:,}"),
    ("Failed requests", "failed", "{:,}"),
    ("Duration (s)", "duration", "{:,.2f}"),
    ("Input tokens", "total_input_tokens", "{:,}"),
    ("  of them from the prefix cache", "total_cached_tokens", "{:,}"),
    ("Output tokens", "total_output_tokens", "{:,}"),
    ("Messages", "total_messages", "{:,}"),
    ("Requests per second", "request_throughput", "{:,.2f}"),
    ("Good requests per second", "request_goodput", "{:,.2f}"),
    ("Output tokens per second", "output_throughput", "{:,.1f}"),
    ("Total tokens per second", "total_token_throughput", "{:,.1f}"),
    ("Peak output tokens per second", "max_output_tokens_per_s", "{:,}"),
    ("Peak concurrent requests", "max_concurrent_requests", "{:,}"),
)
TITLES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Gap between messages",
    "token_itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}


def print_tables(result: Mapping[str, Any], percentiles: Sequence[float], console: Console) -> None:
    """Prints totals, then one row of milliseconds for each distribution."""
    totals = Table("", "", show_header=False, box=None)
    totals.columns[1].justify = "right"
    for title, key, form in TOTALS:
        if result[key] is not None:
            totals.add_row(title, form.format(result[key]))
    console.print(totals)
    console.print()
    columns = ("mean", "std", *(f"p{percent:g}" for percent in percentiles))
    latencies = Table("Latency (ms)", box=None)
    latencies.columns[0].no_wrap = True
    for column in columns:
        latencies.add_column(column, justify="right", no_wrap=True)
    for name in DISTRIBUTIONS:
        latencies.add_row(TITLES[name], *(f"{result[f'{column}_{name}_ms']:,.2f}" for column in columns))
    console.print(latencies)


def print_errors(outcomes: Sequence[RequestOutcome], console: Console) -> None:
    """Prints how often each error came, the most frequent first, at most five kinds."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.error:
            counts[outcome.error] = counts.get(outcome.error, 0) + 1
    for error, count in sorted(counts.items(), key=lambda entry: -entry[1])[:5]:
        console.print(f"{count} x {error}", style="red", markup=False)


def details(outcomes: Sequence[RequestOutcome]) -> dict[str, Any]:
    """Returns one entry for each request, in seconds, under the key names of `vllm bench serve --save-detailed`."""
    return {
        "input_lens": [outcome.num_prompt_tokens for outcome in outcomes],
        "output_lens": [outcome.num_output_tokens for outcome in outcomes],
        "start_times": [outcome.start_s for outcome in outcomes],
        "ttfts": [outcome.ttft_s if outcome.message_times_s else None for outcome in outcomes],
        "itls": [outcome.itls_s for outcome in outcomes],
        "generated_texts": [outcome.text for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Writes a result; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def plot(outcomes: Sequence[RequestOutcome], duration_s: float, title: str, path: Path) -> None:
    """Draws the distributions of time to first token and of message gaps, and the run over time, into a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure with its own canvas leaves pyplot's global state and any display alone.
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes: dict[str, Axes] = figure.subplot_mosaic([["ttft", "itl"], ["time", "time"]])
    samples = samples_s(outcomes)
    for name in ("ttft", "itl"):
        _plot_distribution(axes[name], TITLES[name], [value * 1000 for value in samples[name]])
    _plot_timeline(axes["time"], outcomes, duration_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _plot_distribution(axes: "Axes", title: str, values_ms: list[float]) -> None:
    axes.set(title=title, xlabel="ms", ylabel="samples")
    if not values_ms:
        return
    axes.hist(values_ms, bins=60, color="tab:blue", alpha=0.6)
    ordered = sorted(values_ms)
    for percent, style in ((50, "-"), (90, "--"), (99, ":")):
        value_ms = percentile(ordered, percent)
        axes.axvline(value_ms, color="black", linestyle=style, label=f"p{percent}: {value_ms:,.1f} ms")
    axes.legend()


def _plot_timeline(axes: "Axes", outcomes: Sequence[RequestOutcome], duration_s: float) -> None:
    tokens = tokens_per_second(outcomes, duration_s)
    axes.stairs(tokens, [min(second, duration_s) for second in range(len(tokens) + 1)], fill=True, alpha=0.5)
    axes.set(title="Over time", xlabel="s", ylabel="output tokens in each second", xlim=(0, duration_s))
    changes = sorted(change for outcome in outcomes for change in ((outcome.start_s, 1), (outcome.end_s, -1)))
    times_s, counts = [0.0], [0]
    for time_s, change in changes:
        times_s.append(time_s)
        counts.append(counts[-1] + change)
    open_requests = axes.twinx()
    open_requests.step(times_s, counts, where="post", color="tab:red")
    open_requests.set_ylabel("open requests", color="tab:red")
    open_requests.set_ylim(bottom=0)
