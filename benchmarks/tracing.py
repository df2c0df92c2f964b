"""Measures the cost of traces: many concurrent streams, without tracing and with no, some and all requests sampled.

Four servers stand side by side, on the machine that the client and the receiver of the spans run on too. They take
turns on the same prompts, so that changes in the machine's load affect all of them; each round starts with another.
Prints throughput, and the CPU time of the server's processes for each request, export included, which a machine that
has other things to do disturbs less.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import print_table, save_result, spread
from models import LLAMA_1M, SHAPES, model_directory
from servers import Server, serve_command, start
from service import bench

SAMPLED = {"off": None, "0 %": 0.0, "10 %": 0.1, "100 %": 1.0}
"""Share of requests that is sampled in each mode; None: no tracing."""
BASELINE = "off"
EXPORT_INTERVAL_S = 1.0
SETTLE_S = 1.5
"""Pause after a turn, because spans that are exported late would disturb the next one."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One mode's turn in a round."""

    tokens_per_s: float
    cpu_ms_per_request: float
    num_spans: int


class TraceSink:
    """The receiver of the spans, in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.endpoint = f"http://127.0.0.1:{self._read()}"

    def take_num_spans(self) -> int:
        """Spans that have come since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def trace_sink() -> Iterator[TraceSink]:
    """Runs a receiver until the context is left."""
    command = [sys.executable, str(Path(__file__).with_name("trace_sink.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield TraceSink(process)


def environment(share: float | None, sink: TraceSink) -> Mapping[str, str]:
    """Returns the environment variables of a server of this mode."""
    if share is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(share),
        "OTEL_BSP_SCHEDULE_DELAY": str(int(EXPORT_INTERVAL_S * 1000)),
    }


def take_turn(args: argparse.Namespace, server: Server, sink: TraceSink, round_number: int) -> Turn:
    """Runs the load against one server, and waits until the last spans are out."""
    before_s = server.cpu_s()
    result = bench(
        server.address,
        *("--num-prompts", str(args.num_prompts)),
        *("--max-concurrency", str(args.max_concurrency)),
        *("--random-input-len", str(args.input_len)),
        *("--random-output-len", str(args.output_len)),
        *("--seed", str(round_number)),
    )
    time.sleep(SETTLE_S)
    cpu_ms = (server.cpu_s() - before_s) * 1000
    return Turn(result["output_throughput"], cpu_ms / args.num_prompts, sink.take_num_spans())


def measure(args: argparse.Namespace, model: str, sink: TraceSink) -> dict[str, list[Turn]]:
    """The turns of each mode, after one that warms up."""
    flags = ("--dtype", args.dtype, "--max-num-seqs", "256", "--kv-cache-memory", args.kv_cache_memory)
    turns: dict[str, list[Turn]] = {mode: [] for mode in SAMPLED}
    with ExitStack() as stack:
        servers = {
            mode: stack.enter_context(start(serve_command(model, *flags), environment(share, sink)))
            for mode, share in SAMPLED.items()
        }
        modes = list(servers)
        for round_number in range(args.num_rounds + 1):
            for mode in modes:
                turn = take_turn(args, servers[mode], sink, round_number)
                print(
                    f"round {round_number}: {mode:>5} {turn.tokens_per_s:8,.0f} tok/s, {turn.num_spans} spans",
                    flush=True,
                )
                if round_number:
                    turns[mode].append(turn)
            modes = modes[1:] + modes[:1]
    return turns


def summarize(turns: Mapping[str, list[Turn]]) -> dict[str, dict[str, Any]]:
    """Summarizes each mode; ratios are to the baseline's turn of the same round."""
    result = {}
    for mode, own in turns.items():
        pairs = list(zip(own, turns[BASELINE], strict=True))
        result[mode] = {
            "output_tokens_per_s": spread([turn.tokens_per_s for turn in own]),
            "throughput_ratio": spread([turn.tokens_per_s / off.tokens_per_s for turn, off in pairs]),
            "cpu_ms_per_request": spread([turn.cpu_ms_per_request for turn in own]),
            "cpu_ratio": spread([turn.cpu_ms_per_request / off.cpu_ms_per_request for turn, off in pairs]),
            "spans": spread([turn.num_spans for turn in own]),
        }
    return result


def print_result(args: argparse.Namespace, result: Mapping[str, Mapping[str, Any]]) -> None:
    """One row for each mode."""
    rows = [
        (
            mode,
            float(entry["output_tokens_per_s"]["median"]),
            float(entry["throughput_ratio"]["median"]),
            f"{entry['throughput_ratio']['min']:.3f} - {entry['throughput_ratio']['max']:.3f}",
            float(entry["cpu_ms_per_request"]["median"]),
            float(entry["cpu_ratio"]["median"]),
            float(entry["spans"]["median"]),
        )
        for mode, entry in result.items()
    ]
    columns = ("sampled", "output tok/s", "ratio to off", "range", "CPU ms/request", "ratio to off", "spans")
    print_table(f"{args.max_concurrency} streams, {args.num_rounds} rounds", columns, rows)


def main() -> None:
    """Measures, prints a table and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default=LLAMA_1M.name)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--num-prompts", type=int, default=1024)
    parser.add_argument("--max-concurrency", type=int, default=256)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--num-rounds", type=int, default=12)
    parser.add_argument("--kv-cache-memory", default="256MiB")
    args = parser.parse_args()
    shape = SHAPES[args.model]
    with trace_sink() as sink:
        result = summarize(measure(args, str(model_directory(shape)), sink))
    print_result(args, result)
    save_result(f"tracing-{shape.name}", vars(args) | {"shape": asdict(shape)}, result)


if __name__ == "__main__":
    main()
