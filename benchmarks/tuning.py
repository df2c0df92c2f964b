"""Measures the flags of docs/tuning.md: the same load on servers that differ in one flag, in turns.

Settings of a knob take turns, so that a machine that is busy with something else is so for all of them. The model is
tiny: what shows is scheduling, messages and batching; how steps grow with their tokens depends on the model.
"""

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from machine import print_table, save_result, spread
from models import LLAMA_1M, model_directory
from servers import shard_and_router
from service import bench

FIGURES = ("output_throughput", "p50_ttft_ms", "p50_itl_ms", "p99_itl_ms")


@dataclass(frozen=True, slots=True)
class Knob:
    """One flag, the values to try, and a load that it matters for."""

    flag: str
    values: tuple[str, ...]
    load: Mapping[str, int]
    """Flags of `pagewire bench`."""
    of_router: bool = False


SHORT = {"num-prompts": 256, "max-concurrency": 128, "random-input-len": 32, "random-output-len": 64}
LONG = {"num-prompts": 48, "max-concurrency": 12, "random-input-len": 1024, "random-output-len": 64}
FEW = {"num-prompts": 32, "max-concurrency": 8, "random-input-len": 32, "random-output-len": 128}
KNOBS = (
    Knob("--max-num-batched-tokens", ("128", "512", "2048"), LONG),
    Knob("--max-num-seqs", ("16", "64", "256"), SHORT),
    Knob("--kv-cache-memory", ("4MiB", "64MiB"), SHORT),
    Knob("--max-inflight", ("1", "2", "3"), FEW, of_router=True),
    Knob("--coalesce-max-ms", ("0", "50"), SHORT, of_router=True),
)


def measure(knob: Knob, value: str, model: str, seed: int) -> dict[str, Any]:
    """One run against servers of its own, after a short one that warms them up."""
    shard_flags = ["--max-model-len", "1280"]
    if knob.flag != "--kv-cache-memory":
        shard_flags += ["--kv-cache-memory", "128MiB"]
    router_flags = [knob.flag, value] if knob.of_router else []
    shard_flags += [] if knob.of_router else [knob.flag, value]
    load = [word for name, number in knob.load.items() for word in (f"--{name}", str(number))]
    with shard_and_router(model, *shard_flags, router_flags=router_flags) as (_, router, _):
        bench(router.address, *load, "--num-prompts", str(knob.load["max-concurrency"]), "--seed", str(1000 + seed))
        return bench(router.address, *load, "--seed", str(seed))


def turns(knob: Knob, model: str, num_turns: int) -> dict[str, dict[str, Any]]:
    """The spread of each figure, for each value of the knob."""
    runs: dict[str, list[dict[str, Any]]] = {value: [] for value in knob.values}
    for turn in range(num_turns):
        for value in random.Random(turn).sample(knob.values, len(knob.values)):
            runs[value].append(measure(knob, value, model, turn))
            print(f"{knob.flag} {value}: {runs[value][-1]['output_throughput']:,.0f} tok/s", flush=True)
    return {value: {name: spread([run[name] for run in runs[value]]) for name in FIGURES} for value in knob.values}


def main() -> None:
    """Measures, prints a table for each knob and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument("--only", metavar="FLAG", help="one knob, by the name of its flag")
    args = parser.parse_args()
    model = str(model_directory(LLAMA_1M))
    knobs = {}
    for knob in KNOBS:
        if args.only in (None, knob.flag):
            values = turns(knob, model, args.num_turns)
            knobs[knob.flag] = {"load": dict(knob.load), "of_router": knob.of_router, "values": values}
            rows = [(value, *(figures[name]["median"] for name in FIGURES)) for value, figures in values.items()]
            print_table(knob.flag, ("value", *FIGURES), rows)
    save_result("tuning", vars(args) | {"model": LLAMA_1M.name}, {"knobs": knobs})


if __name__ == "__main__":
    main()
