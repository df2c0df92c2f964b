"""pagewire beside vLLM on one GPU, with random weights of a model's shape.

  offline   both engines resident on the GPU, one computes while the other waits, by turns A B B A, on the same token
            ids (LLM.generate); prints the time of every call
  serving   each server alone, under the same load: closed loops of 256 streams and of one, a rate

Both run at their own defaults but for the size of the KV cache, which offline is the same. The interpreter needs
pagewire, numpy and psutil; --vllm-python names one that has vLLM and aiohttp, by default the same. An engine that dies,
or answers with fewer tokens than asked for, ends the comparison with an error; what was measured until then goes into a
file named *.incomplete.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beside_parts.entrant import KINDS, EngineDied, Entrant, gpu_state
from beside_parts.serving import LOADS, WARM_UP, Served
from beside_parts.turns import Offline
from beside_parts.workloads import CASES, Size
from gpu_parts.shapes import SHAPES, Shape, model_directory
from machine import RESULTS, describe_run, print_table

GIB = 1 << 30
TINY_DIVISOR = 32
"""Of requests and tokens in a test of the benchmark itself."""


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("offline", "serving"))
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b")
    parser.add_argument("--only", type=_names, metavar="NAME,...", help="cases or loads (default: all)")
    parser.add_argument("--repetitions", type=int, metavar="N", help="of each case (default: by its length)")
    parser.add_argument("--kv-cache-gib", type=float, default=43.0, metavar="GIB", help="of each engine, offline")
    parser.add_argument("--max-model-len", type=int, default=8192, metavar="N")
    parser.add_argument("--budget-seconds", type=float, default=540.0, metavar="S", help="no case begins after so long")
    parser.add_argument("--vllm-python", default=sys.executable, metavar="FILE", help="interpreter of vLLM")
    parser.add_argument(
        "--entrants", type=_entrant, nargs=2, default=[Entrant("vllm", "vllm"), Entrant("pagewire", "pagewire")],
        metavar="LABEL=KIND", help="the baseline, and what is compared with it (default: vllm pagewire)",
    )  # fmt: skip
    parser.add_argument(
        "--option", type=_option, action="append", default=[], metavar="LABEL.NAME=VALUE",
        help="an option of an entrant's LLM; VALUE is JSON or text",
    )  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of the benchmark itself")
    parser.add_argument("--commit", default="", metavar="ID", help="of the sources, where there is no git")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="for the engines' logs (default: a temporary one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/results/beside-PART-SHAPE.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, keeps and prints. The exit status is 1 if an engine died."""
    args = build_parser().parse_args(argv)
    known: Sequence[str] = list(CASES) if args.part == "offline" else [name for name in LOADS if name != WARM_UP]
    names = [name for name in known if not args.only or name in args.only]
    if args.only and (unknown := set(args.only) - set(known)):
        build_parser().error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    out = args.out or RESULTS / f"beside-{args.part}-{args.shape}.json"
    shape = SHAPES[args.shape].tiny() if args.tiny else SHAPES[args.shape]
    with tempfile.TemporaryDirectory() as folder:
        logs = args.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        entrants = [_complete(entrant, args, model_directory(shape, Path(folder))) for entrant in args.entrants]
        measured = _measured(args, entrants, Size(shape.vocab_size, TINY_DIVISOR if args.tiny else 1), logs)
        try:
            _measure(args, measured, names)
        except EngineDied as error:
            _write(out.with_name(f"{out.name}.incomplete"), args, shape, measured)
            print(f"error: {error}", file=sys.stderr)
            return 1
    record = _write(out, args, shape, measured)
    _print(record["result"])
    return 0


def _complete(entrant: Entrant, args: argparse.Namespace, model: Path) -> Entrant:
    """The entrant with all options."""
    options: dict[str, Any] = {"model": str(model), "load_format": "dummy", "max_model_len": args.max_model_len}
    if args.part == "offline":
        kv_cache_bytes = int(args.kv_cache_gib * GIB)
        if entrant.kind == "vllm":
            # Its share of the GPU would otherwise have to hold the other engine, too.
            options |= {"kv_cache_memory_bytes": kv_cache_bytes, "gpu_memory_utilization": 0.5}
            options |= {"skip_tokenizer_init": True}
        else:
            options |= {"kv_cache_memory": kv_cache_bytes}
    options |= {name: value for label, name, value in args.option if label == entrant.label}
    python = args.vllm_python if entrant.kind == "vllm" else sys.executable
    return replace(entrant, python=python, options=options)


def _measured(args: argparse.Namespace, entrants: list[Entrant], size: Size, logs: Path) -> Offline | Served:
    if args.part == "offline":
        return Offline(entrants, size, logs, args.repetitions)
    return Served(entrants, size, logs)


def _measure(args: argparse.Namespace, measured: Offline | Served, names: Sequence[str]) -> None:
    if isinstance(measured, Offline):
        measured.measure(names, time.monotonic() + args.budget_seconds)
    else:
        measured.measure(names)


def _write(path: Path, args: argparse.Namespace, shape: Shape, measured: Offline | Served) -> dict[str, Any]:
    options = {e.label: {k: v for k, v in e.options.items() if k != "model"} for e in measured.entrants}
    settings = {
        "shape": shape.name,
        "tiny": args.tiny,
        "options": options,
        "kinds": {e.label: e.kind for e in measured.entrants},
    }
    record = describe_run(path.name.partition(".")[0], settings)
    if args.commit:
        record["software"]["commit"] = args.commit
    record["gpu"] = {"name": gpus[0]["name"] if (gpus := gpu_state()) else "none"}
    record["result"] = {
        "baseline": measured.entrants[0].label,
        "entrant": measured.entrants[1].label,
        "starts": measured.starts,
        "rows": measured.rows(),
        "left_out": measured.left_out if isinstance(measured, Offline) else [],
        "runs": measured.runs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")
    print(f"Result: {path}")
    return record


def _print(result: dict[str, Any]) -> None:
    baseline, entrant = result["baseline"], result["entrant"]
    rows = []
    for row in result["rows"]:
        if "seconds" in row:
            medians = [row["seconds"][label]["median"] for label in (baseline, entrant)]
            rows.append((row["title"], *medians, medians[0] / medians[1]))
        else:
            medians = [row["figures"][label]["output_throughput"]["median"] for label in (baseline, entrant)]
            rows.append((row["title"], *medians, medians[1] / medians[0]))
    unit = "s" if result["rows"] and "seconds" in result["rows"][0] else "tok/s"
    print_table("medians", ("case", f"{baseline}, {unit}", f"{entrant}, {unit}", "times as fast"), rows)


def _entrant(text: str) -> Entrant:
    label, _, kind = text.rpartition("=")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{kind!r} is no engine; there are {', '.join(KINDS)}")
    return Entrant(label or kind, kind)


def _names(text: str) -> list[str]:
    return text.split(",")


def _option(text: str) -> tuple[str, str, Any]:
    place, equals, value = text.partition("=")
    label, dot, name = place.partition(".")
    if not (equals and dot):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL.NAME=VALUE")
    try:
        return label, name, json.loads(value)
    except ValueError:
        return label, name, value


if __name__ == "__main__":
    sys.exit(main())
