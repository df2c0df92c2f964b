"""Measures tile configurations on this machine's GPU and writes the best, with its time, into the tuning tables.

For each class of kernels/pagewire_kernels/tuning: one field of the configuration after the other takes the value that
is fastest, round after round, until none changes. Configurations that do not compile, do not fit or compute something
else are left out. A run takes minutes; serving never tunes.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from tuning_classes import Config, Load, TuningClass, all_classes

TABLES = Path(__file__).resolve().parent.parent / "kernels" / "pagewire_kernels" / "tuning"
MAX_ROUNDS = 3
MAX_ERROR = 1e-2
LEAST_GAIN = 0.01
"""A configuration replaces another only if it is faster by this share; smaller differences are noise."""
WARM_UP_MS, MEASURED_MS = 10, 40
MAX_GRID = 80
"""Classes with no more configurations than this are compiled whole ahead of the search."""

Entry = dict[str, Any]
Measure = Callable[[Config], list[float]]
"""Measures a configuration: seconds of a call of each load, infinite if it does not run or is wrong."""


@dataclass(slots=True)
class Search:
    """The search for one class."""

    measure: Measure
    measured: dict[Config, list[float]] = field(default_factory=dict)

    def run(self, start: Config, choices: Mapping[str, Sequence[object]]) -> Config:
        """The best configuration found, `start` if none is better."""
        best = start
        for _ in range(MAX_ROUNDS):
            before = best
            for name, values in choices.items():
                for value in values:
                    candidate = replace(best, **{name: value})
                    if self._is_faster(candidate, best):
                        best = candidate
            if best == before:
                break
        return best

    def seconds(self, config: Config) -> list[float]:
        """Returns the seconds of each load, measured once."""
        if config not in self.measured:
            self.measured[config] = self.measure(config)
        return self.measured[config]

    def _is_faster(self, candidate: Config, best: Config) -> bool:
        new, old = self.seconds(candidate), self.seconds(best)
        if not all(map(math.isfinite, new)):
            return False
        if not all(map(math.isfinite, old)):
            return True
        # Every load has the same weight, however long it takes.
        gain = sum(math.log(before / after) for before, after in zip(old, new, strict=True)) / len(old)
        return gain > LEAST_GAIN


def measure_on_device(loads: Sequence[Load], start: Config) -> Measure:
    """Times configurations and compares what they compute with what `start` does."""
    import torch
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    runs = [load.make() for load in loads]
    expected = [run(start).clone() for run in runs]

    def measure(config: Config) -> list[float]:
        times_s = []
        for load, run, reference in zip(loads, runs, expected, strict=True):
            try:
                error = (run(config).float() - reference.float()).norm() / reference.float().norm()
                if not error <= MAX_ERROR:
                    return [math.inf] * len(runs)
                took_ms = do_bench(
                    lambda run=run: run(config), warmup=WARM_UP_MS, rep=MEASURED_MS, return_mode="median"
                )
            except (CompilationError, OutOfResources):
                return [math.inf] * len(runs)
            times_s.append(took_ms / 1e3 / load.num_calls)
        torch.cuda.synchronize()
        return times_s

    return measure


def describe(loads: Sequence[Load], times_s: Sequence[float], device: str) -> str:
    """Returns the text for the reason field of an entry."""
    parts = []
    for load, time_s in zip(loads, times_s, strict=True):
        rate = f"{load.num_bytes / time_s / 1e12:.2f} TB/s" if load.num_bytes else ""
        rate = rate or (f"{load.num_flops / time_s / 1e12:.0f} TFLOP/s" if load.num_flops else "")
        parts.append(f"{load.name}: {time_s * 1e6:.1f} us{rate and f', {rate}'}")
    return f"Measured on {device}. {'; '.join(parts)}."


def updated(entries: Sequence[Entry], key: Mapping[str, int | str], config: Config, reason: str) -> list[Entry]:
    """The table with the entry of this key replaced, or added at its end."""
    new = {**key, **asdict(config), "reason": reason}
    result = [dict(entry) for entry in entries]
    for index, entry in enumerate(result):
        if all(entry.get(name) == value for name, value in key.items()):
            result[index] = new
            return result
    return [*result, new]


def write_table(path: Path, entries: Sequence[Entry]) -> None:
    """One line for each entry."""
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in entries) + "\n]\n")


def tune(tuning_class: TuningClass, device: str) -> None:
    """Searches for one class and writes its entry."""
    search = Search(measure_on_device(tuning_class.loads, tuning_class.start))
    best = search.run(tuning_class.start, tuning_class.choices)
    reason = describe(tuning_class.loads, search.seconds(best), device)
    if best != tuning_class.start and all(map(math.isfinite, before_s := search.seconds(tuning_class.start))):
        times = ", ".join(f"{time_s * 1e6:.1f} us" for time_s in before_s)
        reason += f" The choice before ({tuning_class.start}): {times}."
    print(f"{tuning_class.name}: {len(search.measured)} configurations\n  {best}\n  {reason}", flush=True)
    path = TABLES / f"{tuning_class.table}.json"
    entries: list[Entry] = json.loads(path.read_text(encoding="utf-8"))
    write_table(path, updated(entries, tuning_class.key, best, reason))


def likely(tuning_class: TuningClass) -> Iterator[Config]:
    """Returns configurations that the search will measure: all if they are few, else the neighbours of the start."""
    start, choices = tuning_class.start, tuning_class.choices
    yield start
    if math.prod(map(len, choices.values())) <= MAX_GRID:
        for combination in product(*choices.values()):
            yield replace(start, **dict(zip(choices, combination, strict=True)))
    else:
        for name, values in choices.items():
            for value in values:
                yield replace(start, **{name: value})


def compile_one(class_name: str, gpu: int, config: Config) -> None:
    """Runs a configuration once, so that its kernels are in Triton's cache on disk. The search reports failures."""
    import torch

    with suppress(Exception):
        (tuning_class,) = (each for each in all_classes(gpu) if each.name == class_name)
        for load in tuning_class.loads:
            load.make()(config)
            torch.cuda.synchronize()


def compile_ahead(classes: Sequence[TuningClass], gpu: int, num_jobs: int) -> None:
    """Compiles likely configurations in further processes, because compiling takes most of a search."""
    context = multiprocessing.get_context("spawn")
    began_s = time.monotonic()
    with ProcessPoolExecutor(num_jobs, mp_context=context) as pool:
        done = [
            pool.submit(compile_one, each.name, gpu, config)
            for each in classes
            for config in dict.fromkeys(likely(each))
        ]
        with suppress(BrokenProcessPool):  # the search compiles what is missing
            for future in done:
                future.result()
    print(f"{len(done)} configurations compiled in {time.monotonic() - began_s:.0f} s", flush=True)


def main() -> int:
    """Tunes the classes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", metavar="TEXT,...", help="classes whose names contain one of these (default: all)"
    )
    parser.add_argument("--compile-only", action="store_true", help="compile ahead and end")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that compile; 0: none ahead"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all classes and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(each.name for each in all_classes(0)))
        return 0
    import torch
    import triton

    if not torch.cuda.is_available():
        print("error: no CUDA device is visible", file=sys.stderr)
        return 1
    major, minor = torch.cuda.get_device_capability()
    device = f"{torch.cuda.get_device_name()} with Triton {triton.__version__}"
    gpu = 10 * major + minor
    classes = [each for each in all_classes(gpu) if any(text in each.name for text in args.only.split(","))]
    if args.jobs:
        compile_ahead(classes, gpu, args.jobs)
    if not args.compile_only:
        for tuning_class in classes:
            tune(tuning_class, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
