"""The router's ceiling: tokens per second through router and wire, with a shard that takes no time.

For each number of streams, clients in processes of their own keep that many gRPC streams open. Prints tokens per
second, the gaps between messages, and the CPU time of the router for each token, of the thread of its event loop and of
all threads: on a machine whose cores are shared, that time is steadier than the rate. --burst adds runs of `pagewire
bench` that offer as many requests at once, --profile a run under cProfile that says where the time of the router's
event loop goes. --tree names further checkouts of pagewire, whose routers are measured by turns. A client that fails, a
window without a token, or a request of a burst that is not answered in full ends the run with an error.
"""

import argparse
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import RESULTS, ROOT, num_cores, print_table, save_result, spread
from models import LLAMA_1M, model_directory
from servers import Server, free_port, read_metrics, start

HERE = Path(__file__).resolve().parent
FOLDERS = ("client", "common", "router")
SETTLE_S = 2.0
"""Time from the last client's start until streams are in their steady state."""
START_CLIENTS_S = 1.5

PARTS: tuple[tuple[str, str, str, bool], ...] = (
    # (what, file, function, whether the time of what it calls counts)
    ("scheduler: take in a result", "scheduler.py", "update", True),
    ("scheduler: make a plan", "scheduler.py", "schedule", True),
    ("outputs: detokenize, stops, wake-ups", "group_loop.py", "_deliver", True),
    ("plan stream: read and parse results", "group_loop.py", "_receive", False),
    ("plan stream: serialize and write plans", "group_loop.py", "_send", False),
    ("pacer", "pacer.py", "_flush", False),
    ("pacer", "pacer.py", "_call", False),
    ("pacer", "pacer.py", "_on_timer", True),
    ("pacer", "write_budget.py", "on_turn", True),
    ("messages: take and encode", "output_buffer.py", "take", True),
    ("messages: take and encode", "response_encoding.py", "encode_responses", True),
    ("messages: take and encode", "inference.py", "_write", False),
    ("messages: write (gRPC)", "message_writer.py", "_advance", True),
    ("messages: times for metrics", "request_timer.py", "on_written", True),
    ("requests: admission", "admission.py", "admit", True),
)


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout of pagewire."""

    name: str
    path: Path

    def environment(self) -> dict[str, str]:
        """Variables with which Python finds its packages before any others."""
        inherited = os.environ.get("PYTHONPATH", "")
        return {"PYTHONPATH": os.pathsep.join([*(str(self.path / folder) for folder in FOLDERS), inherited])}


PACING = {
    "pagewire_stream_interval_seconds": ("interval_ms", 1e3),
    "pagewire_message_cost_seconds": ("message_cost_us", 1e6),
    "pagewire_event_loop_served_ratio": ("served", 1.0),
}
"""What the router says of its pacing, by the name here and a factor. Older routers say nothing."""


@contextmanager
def router_over_ideal_shard(
    tree: Tree, args: argparse.Namespace, profile: Path | None = None
) -> Iterator[tuple[Server, int]]:
    """Starts an ideal shard and a router; yields the router and the port of its metrics."""
    tokenizer = model_directory(LLAMA_1M) / "tokenizer.json"
    shard_command = [sys.executable, str(HERE / "ideal_shard.py"), "--step-ms", str(args.step_ms)]
    shard_command += ["--max-num-seqs", str(max(args.streams)), "--tokenizer", str(tokenizer)]
    here = Tree("", ROOT).environment()
    with start(shard_command, here) as shard:
        command = [
            sys.executable,
            *(("-m", "cProfile", "-o", str(profile)) if profile else ()),
            "-m",
            "pagewire_router",
        ]
        port = free_port()
        command += ["--shards", shard.address, "--listen", "127.0.0.1:0", "--metrics-port", str(port)]
        with start([*command, *args.router_flags], tree.environment()) as router:
            yield router, port


def measure(router: Server, metrics_port: int, num_streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """One window of this many streams."""
    num_clients = min(args.clients, num_streams)
    begin_s = time.time() + START_CLIENTS_S + SETTLE_S
    end_s = begin_s + args.seconds
    clients = [
        _start_client(router, num_streams // num_clients + (i < num_streams % num_clients), begin_s, end_s, i, args)
        for i in range(num_clients)
    ]
    time.sleep(max(0.0, begin_s - time.time()))
    before = _thread_times_s(router)
    time.sleep(max(0.0, end_s - time.time()))
    after = _thread_times_s(router)
    samples = read_metrics(metrics_port)
    pacing = {name: samples.get(sample, 0.0) * factor for sample, (name, factor) in PACING.items()}
    results = []
    for client in clients:
        output, _ = client.communicate(timeout=120)
        if client.returncode:
            raise RuntimeError(f"a client failed with status {client.returncode}")
        results.append(json.loads(output))
    if not all(result["num_tokens"] for result in results):
        raise RuntimeError(f"a client got no token in a window of {args.seconds:g} s")
    return _summarize(results, [after[i] - before.get(i, 0.0) for i in after], args.seconds) | pacing


def burst(router: Server, num_requests: int, args: argparse.Namespace) -> dict[str, Any]:
    """As many requests at once, each of output_len tokens."""
    before_s = max(_thread_times_s(router).values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pagewire", "bench", "--server", router.address, "--no-progress"]
        command += ["--num-prompts", str(num_requests), "--random-input-len", str(args.input_len)]
        command += ["--random-output-len", str(args.burst_output_len), "--save-result", str(path)]
        environment = {**os.environ, **Tree("", ROOT).environment()}
        subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
        result = json.loads(path.read_text())
    num_tokens = num_requests * args.burst_output_len
    if result["total_output_tokens"] != num_tokens:
        raise RuntimeError(f"a burst was answered with {result['total_output_tokens']} of {num_tokens} tokens")
    loop_s = max(_thread_times_s(router).values()) - before_s
    return {
        "tokens_per_s": result["output_throughput"],
        "tokens_per_message": result["total_output_tokens"] / result["total_messages"],
        "p50_ttft_ms": result["p50_ttft_ms"],
        "p99_ttft_ms": result["p99_ttft_ms"],
        "p50_tpot_ms": result["p50_tpot_ms"],
        "p50_gap_ms": result["p50_itl_ms"],
        "loop_us_per_token": loop_s / result["total_output_tokens"] * 1e6,
    }


def _start_client(
    router: Server, num_streams: int, begin_s: float, end_s: float, seed: int, args: argparse.Namespace
) -> "subprocess.Popen[str]":
    command = [sys.executable, str(HERE / "ceiling_client.py"), "--server", router.address]
    for flag in ("num_streams", "begin_s", "end_s", "seed"):
        command += [f"--{flag.replace('_', '-')}", str(locals()[flag])]
    command += ["--input-len", str(args.input_len), "--output-len", str(args.output_len)]
    environment = {**os.environ, **Tree("", ROOT).environment()}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _thread_times_s(server: Server) -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in server.process.threads()}


def _summarize(results: Sequence[dict[str, Any]], thread_s: Sequence[float], seconds: float) -> dict[str, Any]:
    num_tokens = sum(result["num_tokens"] for result in results)
    num_messages = sum(result["num_messages"] for result in results)
    gaps_ms = sorted(gap for result in results for gap in result["gaps_ms"])
    return {
        "tokens_per_s": num_tokens / seconds,
        "messages_per_s": num_messages / seconds,
        "tokens_per_message": num_tokens / max(1, num_messages),
        "p50_gap_ms": gaps_ms[len(gaps_ms) // 2] if gaps_ms else 0.0,
        "p99_gap_ms": gaps_ms[len(gaps_ms) * 99 // 100] if gaps_ms else 0.0,
        "loop_us_per_token": max(thread_s) / max(1, num_tokens) * 1e6,
        "router_us_per_token": sum(thread_s) / max(1, num_tokens) * 1e6,
        "loop_busy": max(thread_s) / seconds,
        "client_busy": max(result["cpu_s"] for result in results) / seconds,
    }


def profile(tree: Tree, num_streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """Shares of the event loop's thread by part, from a run under cProfile, which makes Python's part look larger."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "router.prof"
        with router_over_ideal_shard(tree, args, path) as (router, port):
            figures = measure(router, port, num_streams, args)
            total_s = max(_thread_times_s(router).values())
        stats = pstats.Stats(str(path))
    seconds: dict[str, float] = {}
    for (file, _, function), (_, _, own_s, all_s, _) in stats.stats.items():  # type: ignore[attr-defined]
        for what, part_file, part_function, with_callees in PARTS:
            if Path(file).name == part_file and function == part_function:
                seconds[what] = seconds.get(what, 0.0) + (all_s if with_callees else own_s)
    # The profile counts elapsed time: where cores are scarce, its parts are more than the thread has computed.
    total_s = max(total_s, sum(seconds.values()))
    seconds["rest: event loop, completions, start"] = total_s - sum(seconds.values())
    return {"streams": num_streams, "shares": {what: s / total_s for what, s in seconds.items()}, "figures": figures}


def rows_of(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spread of every figure, by checkout and number of streams."""
    keys = dict.fromkeys((run["tree"], run["streams"]) for run in runs)
    rows = []
    for tree, streams in sorted(keys, key=lambda key: key[1]):
        chosen = [run["figures"] for run in runs if (run["tree"], run["streams"]) == (tree, streams)]
        figures = {name: spread([figures[name] for figures in chosen]) for name in chosen[0]}
        rows.append({"tree": tree, "streams": streams, "figures": figures})
    return rows


def print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints the medians."""
    if rows:
        names = list(rows[0]["figures"])
        cells = [[f"{r['tree']}, {r['streams']}", *(r["figures"][name]["median"] for name in names)] for r in rows]
        print_table(title, ("streams", *names), cells)


def main() -> None:
    """Measures, prints tables and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--clients", type=int, default=max(1, min(8, num_cores() - 3)), help="client processes")
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=2000, help="mean; lengths vary by half of it")
    parser.add_argument("--step-ms", type=float, default=0.0, help="length of the shard's steps")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--burst", action="store_true")
    parser.add_argument("--burst-output-len", type=int, default=256)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=PATH", help="a further checkout")
    parser.add_argument("--router-flags", nargs="*", default=[], metavar="FLAG", help="as --coalesce-max-ms=0")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--name", default="router-ceiling", help="of the result; it begins with router-")
    args = parser.parse_args()
    trees = [Tree("here", ROOT), *(Tree(name, Path(path)) for name, _, path in (t.partition("=") for t in args.tree))]
    windows: list[dict[str, Any]] = []
    bursts: list[dict[str, Any]] = []
    for round_index in range(args.rounds):
        for tree in trees if round_index % 2 == 0 else trees[::-1]:
            with router_over_ideal_shard(tree, args) as (router, port):
                for num in args.streams:
                    run = {"tree": tree.name, "streams": num}
                    windows.append(run | {"figures": measure(router, port, num, args)})
                    if args.burst:
                        bursts.append(run | {"figures": burst(router, num, args)})
    result = {"windows": rows_of(windows), "bursts": rows_of(bursts)}
    print_rows(f"Streams that go on, medians of {args.rounds} windows", result["windows"])
    print_rows(f"Requests that come at once, medians of {args.rounds} runs", result["bursts"])
    result["profiles"] = [profile(trees[0], num, args) for num in args.streams] if args.profile else []
    for entry in result["profiles"]:
        shares = sorted(entry["shares"].items(), key=lambda item: -item[1])
        print_table(f"{entry['streams']} streams, share of the event loop's thread", ("part", "share"), shares)
    save_result(args.name, vars(args), result, args.out)


if __name__ == "__main__":
    main()
