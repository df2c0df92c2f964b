"""Measures the cost of serving the demo model: time to ready, memory of all processes, and CPU time when idle."""

import argparse
import time
from dataclasses import asdict
from typing import Any

from machine import print_table, save_result, spread
from servers import Server, serve_command, shard_and_router, start

SETTLE_S = 2.0
MIB = 1 << 20


def measure_serve(args: argparse.Namespace) -> dict[str, Any]:
    """Starts `pagewire serve` several times; memory and idle CPU are the last one's."""
    flags = ("--kv-cache-memory", args.kv_cache_memory)
    times_s = []
    for repeat in range(args.repeats):
        with start(serve_command(args.model, *flags)) as server:
            times_s.append(server.time_to_ready_s)
            if repeat == args.repeats - 1:
                time.sleep(SETTLE_S)
                processes = [asdict(memory) for memory in server.memory()]
                idle_percent = idle_cpu_percent(server, args.idle_seconds)
    return {
        "time_to_ready_s": spread(times_s),
        "processes": processes,
        "total_rss_bytes": sum(process["rss_bytes"] for process in processes),
        "total_pss_bytes": sum(process["pss_bytes"] for process in processes),
        "idle_cpu_percent": idle_percent,
    }


def idle_cpu_percent(server: Server, seconds: float) -> float:
    """Returns the CPU time of all processes without requests, in percent of one core."""
    before_s = server.cpu_s()
    time.sleep(seconds)
    return (server.cpu_s() - before_s) / seconds * 100


def measure_router(args: argparse.Namespace) -> dict[str, Any]:
    """Time to ready of a router whose shard is up."""
    times_s = []
    for _ in range(args.repeats):
        with shard_and_router(args.model, "--kv-cache-memory", args.kv_cache_memory) as (_, router, _):
            times_s.append(router.time_to_ready_s)
    return {"time_to_ready_s": spread(times_s)}


def main() -> None:
    """Measures, prints tables and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="demo", help="Hugging Face directory, hub id, or demo")
    parser.add_argument("--kv-cache-memory", default="128MiB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    args = parser.parse_args()
    serve, router = measure_serve(args), measure_router(args)
    rows = [(process["name"], process["rss_bytes"] / MIB, process["pss_bytes"] / MIB) for process in serve["processes"]]
    rows.append(("all processes", serve["total_rss_bytes"] / MIB, serve["total_pss_bytes"] / MIB))
    print_table("Memory (MiB)", ("process", "resident", "proportional"), rows)
    figures = [
        ("pagewire serve ready (s)", serve["time_to_ready_s"]["median"]),
        ("router alone ready (s)", router["time_to_ready_s"]["median"]),
        ("idle CPU (% of one core)", serve["idle_cpu_percent"]),
    ]
    print_table("Start", ("figure", "value"), figures)
    save_result("startup", vars(args), {"serve": serve, "router": router})


if __name__ == "__main__":
    main()
