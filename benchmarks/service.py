"""Service throughput: many concurrent gRPC streams from a client on the server's own cores, again and again.

Prints output tokens per second, time to first token and gaps between messages of each run, and the memory of all
server processes after it, which must not grow. Then a single stream: what router and wire add to the shard's steps.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import print_table, save_result, spread
from models import LLAMA_1M, SHAPES, model_directory
from servers import PAGEWIRE, Server, read_metrics, serve_command, shard_and_router, start

MIB = 1 << 20
FIGURES = ("output_throughput", "p50_ttft_ms", "p50_itl_ms", "p99_itl_ms", "p99_ttft_ms")


def bench(address: str, *flags: str) -> dict[str, Any]:
    """Runs `pagewire bench` as a process and returns its result.

    Raises:
        RuntimeError: a request failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [PAGEWIRE, "bench", "--server", address, "--save-result", str(path), "--no-progress", *flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")
        result: dict[str, Any] = json.loads(path.read_text())
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} requests failed:\n{done.stdout}")
    return result


def many_streams(args: argparse.Namespace, server: Server) -> list[dict[str, Any]]:
    """One entry for each run, memory included; the first run warms up and is not among them."""
    runs = []
    for run in range(args.num_runs + 1):
        result = bench(
            server.address,
            *("--num-prompts", str(args.num_prompts)),
            *("--max-concurrency", str(args.max_concurrency)),
            *("--random-input-len", str(args.input_len)),
            *("--random-output-len", str(args.output_len)),
            *("--seed", str(run)),
        )
        memory = server.memory()
        result["rss_bytes"] = sum(process.rss_bytes for process in memory)
        result["pss_bytes"] = sum(process.pss_bytes for process in memory)
        if run:
            runs.append(result)
            print(
                f"run {run}: {result['output_throughput']:,.0f} tok/s, {result['rss_bytes'] / MIB:,.0f} MiB", flush=True
            )
    return runs


def one_stream(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Measures how long a single stream waits for each token beyond the shard's step.

    With one sequence every step yields one token, so the mean step time of the shard stands beside the median gap that
    the client sees.
    """
    flags = ("--max-concurrency", "1", "--random-input-len", str(args.input_len), "--random-output-len", "256")
    with shard_and_router(model, "--dtype", args.dtype, "--kv-cache-memory", args.kv_cache_memory) as (_, router, port):
        bench(router.address, "--num-prompts", "2", *flags, "--seed", "1000")
        before = read_metrics(port)
        result = bench(router.address, "--num-prompts", "8", *flags)
        after = read_metrics(port)
    steps = after["pagewire_shard_step_seconds_count"] - before["pagewire_shard_step_seconds_count"]
    seconds = after["pagewire_shard_step_seconds_sum"] - before["pagewire_shard_step_seconds_sum"]
    step_ms = seconds / steps * 1000
    return {
        "p50_gap_ms": result["p50_itl_ms"],
        "p99_gap_ms": result["p99_itl_ms"],
        "mean_step_ms": step_ms,
        "added_p50_ms": result["p50_itl_ms"] - step_ms,
        "tokens_per_message": result["total_output_tokens"] / result["total_messages"],
        "p50_ttft_ms": result["p50_ttft_ms"],
    }


def main() -> None:
    """Measures, prints tables and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default=LLAMA_1M.name)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--num-prompts", type=int, default=512)
    parser.add_argument("--max-concurrency", type=int, default=256)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--num-runs", type=int, default=10)
    parser.add_argument("--kv-cache-memory", default="256MiB")
    args = parser.parse_args()
    shape = SHAPES[args.model]
    model = str(model_directory(shape))
    flags = ("--dtype", args.dtype, "--max-num-seqs", "256", "--kv-cache-memory", args.kv_cache_memory)
    with start(serve_command(model, *flags)) as server:
        runs = many_streams(args, server)
    summary = {key: spread([run[key] for run in runs]) for key in (*FIGURES, "rss_bytes", "pss_bytes")}
    single = one_stream(args, model)
    rows = [(key, *(float(summary[key][kind]) for kind in ("median", "min", "max"))) for key in summary]
    print_table(f"{args.max_concurrency} streams, {args.num_runs} runs", ("figure", "median", "min", "max"), rows)
    print_table("One stream", ("figure", "value"), list(single.items()))
    result = {"many_streams": summary, "one_stream": single, "runs": runs}
    save_result(f"service-{shape.name}", vars(args) | {"shape": asdict(shape)}, result)


if __name__ == "__main__":
    main()
