"""The HTTP front beside the gRPC front of the same router: the same requests, by turns, from the same client.

Prints tokens per second, the gaps between messages, and the CPU time of the router for each token, which is steadier
than the rate where cores are shared: first for many streams, then for one.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import print_table, save_result, spread
from models import LLAMA_1M, SHAPES, model_directory
from servers import Server, free_port, shard_and_router

CLIENT = Path(__file__).with_name("http_client.py")
SERVED_NAME = "measured"
FRONTS = ("http", "grpc")
FIGURES = ("tokens_per_s", "p50_gap_ms", "p99_gap_ms", "p50_ttft_ms", "tokens_per_message", "router_us_per_token")


@dataclass(frozen=True, slots=True)
class Load:
    """What the client sends: so many requests, of which so many run at a time."""

    num_streams: int = 256
    num_requests: int = 512
    input_len: int = 32
    output_len: int = 128


def measure(front: str, address: str, load: Load, server: Server | None = None) -> dict[str, Any]:
    """One run of the client. Raises CalledProcessError if an answer is not whole.

    Args:
        server: whose CPU time counts; None: nobody's.
    """
    command = [
        *(sys.executable, str(CLIENT), "--front", front, "--server", address, "--model", SERVED_NAME),
        *("--num-streams", str(load.num_streams), "--num-requests", str(load.num_requests)),
        *("--input-len", str(load.input_len), "--output-len", str(load.output_len)),
    ]
    cpu_s = server.cpu_s() if server else 0.0
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    num_tokens = load.num_requests * load.output_len
    if server:
        result["router_us_per_token"] = (server.cpu_s() - cpu_s) / num_tokens * 1e6
    result["tokens_per_message"] = num_tokens / result["num_messages"]
    return result


def main() -> None:
    """Measures, prints tables and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default=LLAMA_1M.name)
    parser.add_argument("--num-streams", type=int, default=256)
    parser.add_argument("--num-requests", type=int, default=512)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--num-runs", type=int, default=5)
    args = parser.parse_args()
    shape = SHAPES[args.model]
    port = free_port()
    flags = ("--max-num-seqs", "256", "--kv-cache-memory", "256MiB", "--served-model-name", SERVED_NAME)
    loads = {
        "many": Load(args.num_streams, args.num_requests, args.input_len, args.output_len),
        "one": Load(1, 4, args.input_len, args.output_len),
    }
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {"many": {}, "one": {}}
    with shard_and_router(str(model_directory(shape)), *flags, router_flags=("--http-port", str(port))) as started:
        router = started[1]
        addresses = {"http": f"127.0.0.1:{port}", "grpc": router.address}
        for run in range(args.num_runs + 1):
            for front in FRONTS:
                for name, load in loads.items():
                    result = measure(front, addresses[front], load, router)
                    if run:  # The first one warms up.
                        runs[name].setdefault(front, []).append(result)
    summary = {
        load: {front: {name: spread([run[name] for run in done]) for name in FIGURES} for front, done in fronts.items()}
        for load, fronts in runs.items()
    }
    for kind, title in (("many", f"{args.num_streams} streams"), ("one", "One stream")):
        rows = [(name, *(float(summary[kind][front][name]["median"]) for front in FRONTS)) for name in FIGURES]
        print_table(f"{title}, medians of {args.num_runs} runs", ("figure", *FRONTS), rows)
    save_result(f"http-front-{shape.name}", vars(args) | {"shape": asdict(shape)}, summary)


if __name__ == "__main__":
    main()
