"""The GPU benchmark: kernels and the whole engine, on one GPU, in one run.

  ceilings       what the device reaches: a large copy, a large matmul
  attention      decode and prefill against their rooflines and against torch's scaled_dot_product_attention
  kernels        everything else against its roofline: small fused ops, sampling, experts, block copies
  start          an engine's start: weights, warm-up, capture of the graphs
  engine         time per output token of the whole engine, driven in this process, against its roofline
  prompt         time to the first token of one prompt
  offline        a whole workload, prompts and outputs, without the wire
  profile        which kernels decode steps spend their time in
  service        the same workload end to end: `pagewire serve`, gRPC, `pagewire bench`
  transformers   the same workload with transformers' continuous batching

Models have the shapes of Llama-3.1-8B, Llama-3.2-1B and Qwen3-30B-A3B and random weights. Parts run in a process of
their own and are kept in the result file as they come; a part that fails is recorded and the next one runs.
`make test-gpu` tests whether kernels are correct.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_parts import worker
from gpu_parts.part import Part, select
from gpu_parts.records import Answer, Record
from gpu_parts.supervisor import run_parts
from gpu_parts.targets import verdicts
from machine import RESULTS, describe_run, print_table

DEFAULT = (
    *("ceilings", "attention", "kernels"),
    *(
        "start:llama-8b",
        "engine:llama-8b",
        "prompt",
        "offline:llama-8b:64x1k",
        "offline:llama-8b:256x1k",
        "service:llama-8b:256x1k",
        "transformers:llama-8b:64x1k",
    ),
    *("engine:llama-1b", "engine:qwen3-30b-a3b"),
)
"""Parts that fit in ten minutes, the most important first."""
OUTPUT_LEN = 128


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", type=_names, default=DEFAULT, metavar="NAME,...", help="parts, or the first words of several"
    )
    parser.add_argument(
        "--skip", type=_names, default=(), metavar="NAME,...", help="parts to leave out, named likewise"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all parts and end")
    parser.add_argument("--budget-seconds", type=float, default=590.0, metavar="S", help="end after so long")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json", metavar="FILE", help="the result file")
    parser.add_argument("--output-len", type=int, default=OUTPUT_LEN, metavar="N", help="tokens each request generates")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of the benchmark itself")
    parser.add_argument("--commit", default="", metavar="ID", help="of the sources, where there is no git")
    parser.add_argument("--worker", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs parts, keeps and prints their results. The exit status is 1 if one failed."""
    args = build_parser().parse_args(argv)
    parts = {part.name: part for part in worker.PARTS}
    if args.worker:
        return worker.serve(worker.make_bench(args.device, args.tiny, args.worker, args.output_len), parts)
    if args.list:
        print("\n".join(parts))
        return 0
    chosen = _choose(worker.PARTS, args)
    head = describe_run("gpu", _settings(args)) | {"gpu": _describe_gpu(args.device)}
    head["software"]["commit"] = args.commit or head["software"]["commit"]
    record = Record(args.out, head)
    with tempfile.TemporaryDirectory(prefix="pagewire-gpu-") as folder:
        command = [sys.executable, __file__, "--worker", folder, "--device", args.device]
        command += ["--output-len", str(args.output_len), *(["--tiny"] if args.tiny else [])]

        def keep(name: str, answer: Answer) -> None:
            record.add(name, answer)
            print(f"{answer.state:>8} {answer.seconds:6.1f} s  {name}", flush=True)

        run_parts([(part.name, part.limit_s) for part in chosen], command, args.budget_seconds, keep)
    record.print_tables()
    if reached := verdicts(record.rows()):
        print_table("targets", list(reached[0]), [list(verdict.values()) for verdict in reached])
    print(f"Result: {args.out}")
    return 1 if record.num_failed() else 0


def _choose(parts: Sequence[Part], args: argparse.Namespace) -> list[Part]:
    try:
        chosen = select(parts, ["ceilings", *args.only])
        left_out = {part.name for part in select(parts, args.skip)}
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    return [part for part in chosen if part.name not in left_out]


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in ("worker", "list", "out")}


def _describe_gpu(device: str) -> dict[str, Any]:
    """The device, as torch sees it; empty without one."""
    if device != "cuda" or not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "num_multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


if __name__ == "__main__":
    sys.exit(main())
