"""The section of docs/benchmarks.md beside vLLM, from the results of benchmarks/beside_vllm.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from docs_pages.markdown import cell, figure, table

Result = Mapping[str, Any]
LATENCIES = (
    ("first token", "ttft"),
    ("time per token", "tpot"),
    ("gap between messages", "itl"),
    ("gap per token", "token_itl"),
)


def beside_section(results: Mapping[str, Result]) -> str:
    """What was compared, where and by which commands, then the tables.

    Args:
        results: By the stems of their files.
    """
    parts = ["## Beside vLLM on a GPU"]
    for stem, result in results.items():
        machine, software, starts = result["machine"], result["software"], result["result"]["starts"]
        versions = [f"{name} {version}" for name, version in software["packages"].items() if version]
        facts = [
            result["date"].partition("T")[0],
            result["gpu"]["name"],
            f"{machine['num_cores']} cores of {machine['cpu']}",
            *(start["engine"] for start in starts.values() if "engine" in start),
            f"commit {software['commit'][:7]}" if software["commit"] else "",
            f"Python {software['python']}",
            *versions,
        ]
        text = f"`{result['command']}`: {', '.join(fact for fact in facts if fact)}; `benchmarks/results/{stem}.json`."
        parts.append(f"{text} {result['method']}" if "method" in result else text)
    return "\n\n".join(part.rstrip() for part in (*parts, *beside_tables(list(results.values())))) + "\n"


def beside_tables(results: Sequence[Result]) -> Iterator[str]:
    """One table of speeds over all results, then the latencies of those that served."""
    rows = [row for result in results for row in (*_speeds(result["result"]), *_start(result["result"]))]
    yield table(("case", "vLLM", "pagewire", "pagewire is times as fast", "runs"), rows)
    left_out = [title for result in results for title in result["result"]["left_out"]]
    if left_out:
        yield f"Not measured: {'; '.join(left_out)}."
    latencies = [row for result in results for row in _latencies(result["result"])]
    if latencies:
        header = ("served", "engine", *(f"{title}, ms: median, 99 %" for title, _ in LATENCIES))
        yield table(header, latencies)


def _speeds(result: Result) -> Iterator[tuple[str, ...]]:
    baseline, entrant = result["baseline"], result["entrant"]
    for row in result["rows"]:
        note = f" ({row['note']})" if "note" in row else ""
        if "figures" in row:
            rates = [row["figures"][label]["output_throughput"]["median"] for label in (baseline, entrant)]
            yield _speed(f"served: {row['title']}, tok/s{note}", rates, rates[1] / rates[0], row["num_runs"])
            continue
        seconds = [row["seconds"][label]["median"] for label in (baseline, entrant)]
        ratio = seconds[0] / seconds[1]
        if row["is_latency"]:
            yield _speed(f"{row['title']}, ms{note}", [median * 1e3 for median in seconds], ratio, row["num_runs"])
        else:
            rates = [row["num_output_tokens"] / median for median in seconds]
            yield _speed(f"{row['title']}, tok/s{note}", rates, ratio, row["num_runs"])


def _start(result: Result) -> Iterator[tuple[str, ...]]:
    """A row, if the starts of both were timed."""
    starts = [result["starts"].get(result[role], {}) for role in ("baseline", "entrant")]
    if all("ready_s" in start for start in starts):
        what = "the server" if any("figures" in row for row in result["rows"]) else "LLM()"
        seconds = [start["ready_s"] for start in starts]
        yield _speed(f"start of {what}, s", seconds, seconds[0] / seconds[1], 1)


def _speed(title: str, medians: Sequence[float], ratio: float, num_runs: int) -> tuple[str, ...]:
    words = f"**{ratio:.2f}**" if ratio >= 1 else f"{ratio:.2f}"
    return cell(title), *(_long_figure(median) for median in medians), words, str(num_runs)


def _long_figure(value: float) -> str:
    """Four digits, because a ratio of two figures shows in the third."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:g}"


def _latencies(result: Result) -> Iterator[tuple[str, ...]]:
    for row in result["rows"]:
        for label, figures in row.get("figures", {}).items():
            pairs = [
                f"{figure(figures[f'p50_{key}_ms']['median'])}, {figure(figures[f'p99_{key}_ms']['median'])}"
                for _, key in LATENCIES
            ]
            yield cell(row["title"]), label, *pairs
