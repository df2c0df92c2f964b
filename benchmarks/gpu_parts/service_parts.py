"""End to end: `pagewire serve` and `pagewire bench` as processes of their own, over gRPC."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from servers import start

from gpu_parts.cases import WORKLOADS, Case
from gpu_parts.part import Bench, Part, Row
from gpu_parts.shapes import model_directory

PAGEWIRE = (sys.executable, "-m", "pagewire")
"""The command by module, because the packages may only be on the path, not installed."""
NUM_RUNS = 2
BENCH_LIMIT_S = 120.0


def serve(case: Case, bench: Bench) -> list[Row]:
    """The workload of the engine's `offline` part, offered at once by a client; the first run warms up."""
    case.check_fits(bench, bench.output_len)
    bench.release_model()
    num_seqs, context = case.scaled(bench)
    with start(_serve_command(case, bench)) as server:
        results = [_offer(server.address, num_seqs, context, bench, seed) for seed in range(NUM_RUNS)]
    result = results[-1]
    return [
        {
            "name": f"service, {case.shape_name}, {num_seqs} x {context} -> {bench.output_len}",
            "output_tokens_per_s": result["output_throughput"],
            "duration_s": result["duration"],
            "tpot_ms": result["median_tpot_ms"],
            "ttft_ms": result["median_ttft_ms"],
            "p99_itl_ms": result["p99_itl_ms"],
            "ready_s": server.time_to_ready_s,
        }
    ]


def _serve_command(case: Case, bench: Bench) -> list[str]:
    on_gpu = bench.device.type == "cuda"
    flags = {
        "--port": "0",
        "--metrics-port": "0",
        "--device": "cuda" if on_gpu else "cpu",
        "--dtype": "auto" if on_gpu else "float32",
        "--load-format": "dummy",
        "--max-model-len": str(bench.size(33_280, 512)),
        "--max-num-seqs": str(bench.size(256, 8)),
        "--kv-cache-memory": str(case.kv_bytes(bench, bench.output_len)),
    }
    path = str(model_directory(case.shape(bench), bench.folder))
    return [*PAGEWIRE, "serve", path, *(word for pair in flags.items() for word in pair)]


def _offer(address: str, num_seqs: int, context: int, bench: Bench, seed: int) -> dict[str, float]:
    """One run of `pagewire bench`. Raises RuntimeError if a request failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        flags = {
            "--server": address,
            "--num-prompts": str(num_seqs),
            "--random-input-len": str(context),
            "--random-output-len": str(bench.output_len),
            "--seed": str(seed),
            "--save-result": str(path),
        }
        command = [*PAGEWIRE, "bench", *(word for pair in flags.items() for word in pair), "--no-progress"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_LIMIT_S, check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f"pagewire bench failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        result: dict[str, float] = json.loads(path.read_text())
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} requests failed:\n{done.stdout[-2000:]}")
    return result


PARTS = tuple(Part(f"service:{case.name}", partial(serve, case), 240.0) for case in WORKLOADS)
