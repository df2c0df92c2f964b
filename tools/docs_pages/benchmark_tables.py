"""Writes the measured figures of docs/benchmarks.md: a section for each file of benchmarks/results, or for several."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from docs_pages.beside_tables import beside_section
from docs_pages.gpu_tables import gpu_tables
from docs_pages.grammar_tables import grammar_tables, structured_tables
from docs_pages.markdown import cell, figure, mebibytes, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: written by tools/generate_docs.py -->\n", "<!-- end of results -->\n"
BESIDE = ("<!-- beside vLLM: written by tools/generate_docs.py -->\n", "<!-- end of beside vLLM -->\n")
OPENING = "beside-"
"""Files whose names begin so are one section, which opens the page."""
ELSEWHERE = ("chaos", "pipeline-parallel-trace")
"""Files that other pages show, or a viewer of traces."""
ROUTER = "router"
"""Files with this first word are one section."""

HEAD = ("name", "date", "command", "machine", "software", "settings")
"""Keys that describe_run() of benchmarks/machine.py writes into every file."""

Result = Mapping[str, Any]


def page() -> str:
    """The page, its sections of results as the files are now."""
    paths = sorted(RESULTS.glob("*.json"), key=lambda path: (_rank(path.stem), path.stem))
    results = {path.stem: json.loads(path.read_text()) for path in paths if path.stem not in ELSEWHERE}
    opening = {stem: result for stem, result in results.items() if stem.startswith(OPENING)}
    sections = _sections({stem: result for stem, result in results.items() if stem not in opening})
    text = _replaced(PAGE.read_text(), *BESIDE, beside_section(opening))
    return _replaced(text, BEGIN, END, "\n".join(sections))


def _replaced(text: str, begin: str, end: str, section: str) -> str:
    """The text with what is between two of its lines replaced."""
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"{PAGE} lacks the lines {begin.strip()!r} and {end.strip()!r}")
    return f"{before}{begin}\n{section}\n{end}{after}"


def _sections(results: Mapping[str, Result]) -> Iterator[str]:
    for word, group in groupby(results.items(), key=lambda item: _first_word(item[0])):
        if word == ROUTER:
            yield router_section(dict(group))
        else:
            yield from (section(stem, result) for stem, result in group)


def section(stem: str, result: Result) -> str:
    """One file: what was measured, where, by which command."""
    kind = KINDS.get(_first_word(stem))
    parts = [
        f"## {kind.title if kind else 'Further measurements'}: {stem}",
        f"```text\n{_command(result)}\n```",
        f"{_where(result)} Full record: `benchmarks/results/{stem}.json`.",
        *(kind.tables if kind else any_tables)(result),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _command(result: Result) -> str:
    """The command, without the path that the file was first written to."""
    return re.sub(r" --out \S+", "", result["command"])


def _first_word(stem: str) -> str:
    return re.split("[-_]", stem)[0]


def _rank(stem: str) -> int:
    words = list(KINDS)
    return words.index(_first_word(stem)) if _first_word(stem) in KINDS else len(words)


def _where(result: Result, *, has_load: bool = True) -> str:
    machine, software = result["machine"], result["software"]
    versions = software["packages"]
    names = ("torch", "triton", "transformers", "grpcio", "numba")
    parts = [
        result["date"].partition("T")[0],
        *([result["gpu"]["name"]] if "gpu" in result else []),
        f"{machine['num_cores']} cores of {machine['cpu']}",
        f"{machine['memory_bytes'] / 2**30:.0f} GiB",
        *([f"load average {machine['load_average'][0]:.1f}"] if has_load and "load_average" in machine else []),
        f"Python {software['python']}",
        *(f"{name} {versions[name]}" for name in names if versions.get(name)),
    ]
    return cell(f"{', '.join(parts)}.")


def spread(value: Mapping[str, float], form: Callable[[float], str] = figure) -> tuple[str, str]:
    """The median, and the least and the greatest of what was measured."""
    return form(value["median"]), f"{form(value['min'])} to {form(value['max'])}"


def is_spread(value: object) -> bool:
    """Returns whether spread() of benchmarks/machine.py wrote this value."""
    return isinstance(value, Mapping) and {"median", "min", "max"} <= set(value)


def service_tables(result: Result) -> Iterator[str]:
    """Many streams, run after run; then one."""
    settings, many, one = result["settings"], result["result"]["many_streams"], result["result"]["one_stream"]
    yield (
        f"{settings['num_prompts']} requests of {settings['input_len']} prompt and {settings['output_len']} output "
        f"tokens, {settings['max_concurrency']} at a time, {settings['num_runs']} runs. Model: {settings['model']}, "
        f"{settings['dtype']}. Client, router and shard share the machine."
    )
    rows = [
        ("output tokens per second", *spread(many["output_throughput"])),
        ("time to first token, median, ms", *spread(many["p50_ttft_ms"])),
        ("time to first token, 99 %, ms", *spread(many["p99_ttft_ms"])),
        ("gap between messages, median, ms", *spread(many["p50_itl_ms"])),
        ("gap between messages, 99 %, ms", *spread(many["p99_itl_ms"])),
        ("memory of all server processes, MiB", *spread(many["pss_bytes"], mebibytes)),
    ]
    yield table(("many streams", "median of runs", "range"), rows)
    rows_of_one = [
        ("gap between messages, median, ms", figure(one["p50_gap_ms"])),
        ("gap between messages, 99 %, ms", figure(one["p99_gap_ms"])),
        ("step on the shard, mean, ms", figure(one["mean_step_ms"])),
        ("added by router and wire, median, ms", figure(one["added_p50_ms"])),
        ("time to first token, median, ms", figure(one["p50_ttft_ms"])),
    ]
    yield table(("one stream", "value"), rows_of_one)


def offline_tables(result: Result) -> Iterator[str]:
    """Entrants take turns on the same prompts."""
    measured = result["result"]
    yield f"Entrants take turns; each turn is compared with the turn of {measured['baseline']} beside it."
    yield table(
        ("entrant", "tokens per second", "range", "times the baseline", "range", "equal answers"),
        [
            (
                f"{name} ({measured['versions'][name]})",
                *spread(entrant["output_tokens_per_s"]),
                *spread(entrant["ratio_to_baseline"]),
                f"{entrant['equal_sequences']} of {entrant['num_sequences']}",
            )
            for name, entrant in measured["entrants"].items()
        ],
    )


PEER_COLUMNS = {
    "output_throughput": "tokens per second",
    "median_ttft_ms": "first token, median, ms",
    "median_itl_ms": "gap between messages, median, ms",
    "p99_itl_ms": "gap between messages, 99 %, ms",
}

FRONT_COLUMNS = {
    "tokens_per_s": "tok/s",
    "p50_ttft_ms": "TTFT, ms",
    "p50_gap_ms": "gap between messages, ms",
    "p99_gap_ms": "gap between messages, 99 %, ms",
    "tokens_per_message": "tokens in a message",
}


def peer_tables(result: Result) -> Iterator[str]:
    """Engines beside each other: offline batches, or servers under the same load."""
    measured = result["result"]
    if "entrants" in measured:
        yield from offline_tables(result)
        return
    titles, generator = PEER_COLUMNS, "each under its own load generator"
    if not titles.keys() <= next(iter(measured.values())).keys():
        titles, generator = FRONT_COLUMNS, "all under one load generator"
    yield f"Servers take turns, {generator}: `{result['settings']['streams']}`."
    columns = [column for title in titles.values() for column in (title, "range")]
    rows = [(name, *(cell for key in titles for cell in spread(figures[key]))) for name, figures in measured.items()]
    yield table(("server", *columns), rows)


def startup_tables(result: Result) -> Iterator[str]:
    """From the command to the ready line, and what the processes hold afterwards."""
    serve, router = result["result"]["serve"], result["result"]["router"]
    yield f"Model: {result['settings']['model']}, {result['settings']['repeats']} starts."
    yield table(
        ("start", "median, s", "range, s"),
        [
            ("`pagewire serve`: router, shard, model", *spread(serve["time_to_ready_s"])),
            ("`pagewire-router` beside a shard that is ready", *spread(router["time_to_ready_s"])),
        ],
    )
    memory = [(f"`{p['name']}`", mebibytes(p["pss_bytes"]), mebibytes(p["rss_bytes"])) for p in serve["processes"]]
    total = ("all", mebibytes(serve["total_pss_bytes"]), mebibytes(serve["total_rss_bytes"]))
    yield table(("process, idle", "PSS, MiB", "RSS, MiB"), [*memory, total])
    yield f"Idle, all processes together use {figure(serve['idle_cpu_percent'])} % of a core."


def cpu_kernel_tables(result: Result) -> Iterator[str]:
    """Every kernel by number of threads."""
    by_threads: dict[str, list[Mapping[str, Any]]] = {
        key.removeprefix("threads_"): rows for key, rows in result["result"].items()
    }
    header = ["kernel"]
    for num_threads in by_threads:
        header += [f"µs, {num_threads} threads", "rate"]
    rows = []
    for same_kernel in zip(*by_threads.values(), strict=True):
        row = [cell(same_kernel[0]["name"])]
        for timing in same_kernel:
            row += [figure(timing["us"]["median"]), timing["rate"]]
        rows.append(row)
    yield table(header, rows)


def tuning_tables(result: Result) -> Iterator[str]:
    """A table for each knob: the same load, with one flag changed."""
    settings = result["settings"]
    yield f"Model: {settings['model']}. Settings of a knob took turns, {settings['num_turns']} each."
    for flag, knob in result["result"]["knobs"].items():
        load, command = knob["load"], "pagewire-router " if knob["of_router"] else ""
        rows = [
            (
                f"`{value}`",
                *spread(figures["output_throughput"]),
                *spread(figures["p50_ttft_ms"]),
                *spread(figures["p50_itl_ms"]),
                *spread(figures["p99_itl_ms"]),
            )
            for value, figures in knob["values"].items()
        ]
        names = ("tokens per second", "first token, ms", "gap, ms", "gap, 99 %, ms")
        header = ["value"] + [column for name in names for column in (name, "range")]
        yield (
            f"**`{command}{flag}`**, {load['num-prompts']} requests of {load['random-input-len']} prompt and "
            f"{load['random-output-len']} output tokens, {load['max-concurrency']} at a time"
        )
        yield table(header, rows)


def any_tables(result: Result) -> Iterator[str]:
    """Every figure of a result that has no tables of its own."""
    measured = {key: value for key, value in result.items() if key not in HEAD}
    yield table(("figure", "value", "range"), _leaves("", measured.get("result", measured)))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, Mapping) and is_spread(value):
        yield (path, *spread(value))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{path}, {key}" if path else str(key), inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            name = inner.get("name", i) if isinstance(inner, Mapping) else i
            yield from _leaves(f"{path}, {name}", inner)
    elif isinstance(value, float):
        yield path, figure(value), ""
    else:
        yield path, cell(str(value)), ""


def operate_tables(result: Result) -> Iterator[str]:
    """The results of `make test-operate`: tests by file, then the figures that they recorded."""
    files = result["result"]["files"]
    rows = [
        [f"`{name}`", str(file["passed"]), str(file["failed"]), str(file["skipped"]), figure(file["seconds"])]
        for name, file in files.items()
    ]
    yield table(["tests", "passed", "failed", "skipped", "seconds"], rows)
    reasons = sorted({reason for file in files.values() for reason in file["reasons"]})
    if reasons:
        yield "Skipped: " + "; ".join(map(cell, reasons)) + "."
    figures = [[cell(name), figure(value)] for file in files.values() for name, value in file["figures"].items()]
    if figures:
        yield table(["recorded", "value"], figures)


ROUTER_COLUMNS = {
    "tokens_per_s": "tokens per second",
    "tokens_per_message": "tokens in a message",
    "p50_gap_ms": "gap between messages, median, ms",
    "p50_ttft_ms": "first token, median, ms",
    "p99_ttft_ms": "first token, 99 %, ms",
    "loop_us_per_token": "event loop, µs for a token",
    "router_us_per_token": "router, µs for a token",
    "loop_busy": "event loop busy",
    "client_busy": "busiest client busy",
}


def router_section(results: Mapping[str, Result]) -> str:
    """All files of the router's ceiling: one table for each kind of load, a row for each length of a step."""
    places = dict.fromkeys(_where(result, has_load=False) for result in results.values())
    stems = ", ".join(f"`benchmarks/results/{stem}.json`" for stem in results)
    parts = [
        f"## {KINDS[ROUTER].title}",
        "```text\n" + "\n".join(_command(result) for result in results.values()) + "\n```",
        f"{' '.join(places)} Full records: {stems}.",
        *router_tables(list(results.values())),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def router_tables(results: Sequence[Result]) -> Iterator[str]:
    """Windows, bursts, and where the time of the router's event loop goes."""
    yield (
        "The shard computes nothing and answers when the time of a step has passed. Figures are medians over --rounds; "
        'the router is the one of the commit measured ("here") or of a further checkout.'
    )
    titles = {"windows": "streams that go on", "bursts": "requests that come at once"}
    for group, title in titles.items():
        rows = [(result["settings"], row) for result in results for row in result["result"][group]]
        rows.sort(key=lambda pair: (pair[0]["step_ms"], pair[1]["streams"]))
        if rows:
            names = [name for name in ROUTER_COLUMNS if name in rows[0][1]["figures"]]
            cells = [
                (
                    str(row["streams"]),
                    figure(settings["step_ms"]),
                    row["tree"],
                    *(figure(row["figures"][name]["median"]) for name in names),
                )
                for settings, row in rows
            ]
            yield table((title, "step, ms", "router", *(ROUTER_COLUMNS[name] for name in names)), cells)
    profiles = [(result["settings"], profile) for result in results for profile in result["result"]["profiles"]]
    if profiles:
        parts = dict.fromkeys(part for _, profile in profiles for part in profile["shares"])
        shares = [(part, *(f"{100 * p['shares'].get(part, 0.0):.0f} %" for _, p in profiles)) for part in parts]
        shares.sort(key=lambda row: -float(row[-1].split()[0]))
        yield "Where the time of the event loop goes, under cProfile, which makes the parts in Python look larger:"
        header = (f"{profile['streams']} streams, steps of {figure(s['step_ms'])} ms" for s, profile in profiles)
        yield table(("part", *header), shares)


@dataclass(frozen=True, slots=True)
class Kind:
    """How the files of one benchmark are shown."""

    title: str
    tables: Callable[[Result], Iterator[str]]


KINDS = {
    "service": Kind("The service", service_tables),
    ROUTER: Kind("The router's ceiling", lambda result: router_tables((result,))),
    "startup": Kind("Start and idle", startup_tables),
    "offline": Kind("Offline batches", offline_tables),
    "peers": Kind("Beside vLLM on a CPU", peer_tables),
    "tuning": Kind("Knobs", tuning_tables),
    "cpu": Kind("Kernels on a CPU", cpu_kernel_tables),
    "gpu": Kind("On a GPU", gpu_tables),
    "structured": Kind("What grammars cost a batch", structured_tables),
    "grammars": Kind("Grammars", grammar_tables),
    "operate": Kind("Tests with backends, toolchains and charts", operate_tables),
}
"""Kinds of results by the first word of a file's name, in the page's order."""
