"""Both engines resident on one device: one computes while the other waits, by turns A B B A, on the same batches."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import spread

from beside_parts.entrant import EngineProcess, Entrant, gpu_state
from beside_parts.workloads import CASES, DEFAULT_REPETITIONS, NO_WARM_UP, Size

Run = dict[str, Any]


@dataclass(slots=True)
class Offline:
    """The runs of all cases, as they come."""

    entrants: Sequence[Entrant]
    size: Size
    log_folder: Path
    num_repetitions: int | None = None
    """Of each case; None: DEFAULT_REPETITIONS."""
    starts: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Cases for which no time was left."""

    def measure(self, names: Sequence[str], end_s: float) -> None:
        """Runs the cases one after another; none begins after `end_s` of time.monotonic().

        Raises:
            EngineDied: what was measured before is kept in `runs`.
        """
        with ExitStack() as stack:
            engines = []
            for entrant in self.entrants:
                engines.append(stack.enter_context(EngineProcess(entrant, self.log_folder / f"{entrant.label}.log")))
                self.starts[entrant.label] = engines[-1].start | {"gpu": gpu_state()}
                print(f"{entrant.label} is ready after {engines[-1].start['ready_s']:.1f} s", flush=True)
            turn = 0
            for name in names:
                if time.monotonic() > end_s:
                    self.left_out.append(CASES[name].title)
                    continue
                for repetition in self._repetitions(name):
                    self._turn(engines if turn % 2 == 0 else engines[::-1], name, repetition)
                    turn += 1

    def _repetitions(self, name: str) -> range:
        kind = name[0]
        num = DEFAULT_REPETITIONS[kind] if self.num_repetitions is None else self.num_repetitions
        if CASES[name].is_warm_up:
            return range(-num, 0)
        return range(0 if kind in NO_WARM_UP else -1, num)

    def _turn(self, engines: Sequence[EngineProcess], name: str, repetition: int) -> None:
        batch = CASES[name].batch(name, repetition, self.size)
        for engine in engines:
            answer = engine.run(batch)
            num_tokens = sum(answer["num_output_tokens"])
            run = {
                "case": name,
                "repetition": repetition,
                "entrant": engine.label,
                "seconds": answer["seconds"],
                "num_output_tokens": num_tokens,
                "num_cached_tokens": answer["num_cached_tokens"],
                "gpu": gpu_state(),
            }
            self.runs.append(run)
            rate = num_tokens / answer["seconds"]
            print(
                f"{name:22} {repetition:3} {engine.label:12} {answer['seconds']:9.3f} s {rate:10,.0f} tok/s", flush=True
            )

    def rows(self) -> list[dict[str, Any]]:
        """One for each case that every entrant has run."""
        rows = []
        for name, case in CASES.items():
            runs = [run for run in self.runs if run["case"] == name and run["repetition"] >= 0]
            seconds = {e.label: [run["seconds"] for run in runs if run["entrant"] == e.label] for e in self.entrants}
            if not case.is_warm_up and all(seconds.values()):
                rows.append(
                    {
                        "case": name,
                        "title": case.title,
                        "is_latency": case.is_latency,
                        "num_output_tokens": runs[0]["num_output_tokens"],
                        "num_runs": min(map(len, seconds.values())),
                        "seconds": {label: spread(values) for label, values in seconds.items()},
                    }
                )
        return rows
