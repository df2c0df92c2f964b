"""Lets engines take turns on the same prompts, so that changes in the machine's load affect all of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from machine import num_cores, print_table, spread

WORKER = Path(__file__).with_name("offline_worker.py")
PAUSE_S = 1.0
"""Pause between turns, because thread pools spin for a while after their work."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """An engine and how to run it."""

    engine: str
    dtype: str
    python: str = sys.executable
    """Interpreter of an environment that has the engine."""

    @property
    def label(self) -> str:
        """The entrant's name in tables."""
        return f"{self.engine} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Batch:
    """The prompts and lengths of every turn."""

    num_prompts: int
    input_len: int
    output_len: int
    vocab_size: int

    def prompts(self, turn: int) -> list[list[int]]:
        """Random prompts, new in every turn, so that no prefix cache has seen them."""
        rng = random.Random(f"turn {turn}")  # a text, because Random(-1) equals Random(1)
        return [rng.choices(range(self.vocab_size), k=self.input_len) for _ in range(self.num_prompts)]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one engine's turn."""

    seconds: float
    token_ids: list[list[int]]


class Worker:
    """A process that runs one engine. A context manager: leaving it ends the process."""

    def __init__(self, entrant: Entrant, model: Path) -> None:
        self._engine = entrant.engine
        self._process = subprocess.Popen(
            [entrant.python, str(WORKER), entrant.engine, str(model), "--dtype", entrant.dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.version: str = self._read()["engine"]
        self._freeze()

    def generate(self, prompts: list[list[int]], max_tokens: int) -> Answer:
        """Takes a turn."""
        assert self._process.stdin is not None
        self._thaw()
        with suppress(BrokenPipeError):  # What reads its answer says so.
            self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
            self._process.stdin.flush()
        answer = Answer(**self._read())
        self._freeze()
        if [len(token_ids) for token_ids in answer.token_ids] != [max_tokens] * len(prompts):
            raise RuntimeError(f"the worker of {self._engine} did not answer every prompt with {max_tokens} tokens")
        return answer

    def _freeze(self) -> None:
        """Stops the engine's processes between its turns: some keep the cores busy while they wait for work.

        pagewire's sleep by themselves, and a router that is stopped for long would lose its shards.
        """
        if self._engine != "pagewire":
            os.killpg(self._process.pid, signal.SIGSTOP)

    def _thaw(self) -> None:
        if self._process.poll() is not None:
            return  # What reads its answer says so.
        os.killpg(self._process.pid, signal.SIGCONT)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self._engine} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._thaw()
        with suppress(BrokenPipeError):  # It has ended, and what was for it is still in the buffer.
            self._process.stdin.close()
        self._process.wait()


def compete(entrants: Sequence[Entrant], model: Path, batch: Batch, num_turns: int) -> dict[str, Any]:
    """Lets every entrant take num_turns turns after one to warm up; who begins alternates.

    Returns:
        For each entrant its output tokens per second, its ratio to the last entrant within each turn, and the share
        of sequences whose tokens equal the last entrant's.
    """
    with ExitStack() as stack:
        workers = {entrant.label: stack.enter_context(Worker(entrant, model)) for entrant in entrants}
        for worker in workers.values():
            worker.generate(batch.prompts(turn=-1), batch.output_len)
        turns = [_take_turn(workers, batch, turn) for turn in range(num_turns)]
        versions = {label: worker.version for label, worker in workers.items()}
    baseline = entrants[-1].label
    return {"baseline": baseline, "versions": versions, "num_cores": num_cores()} | {
        "entrants": {label: _summarize(label, baseline, turns, batch) for label in workers}
    }


def _take_turn(workers: dict[str, Worker], batch: Batch, turn: int) -> dict[str, Answer]:
    labels = list(workers) if turn % 2 == 0 else list(workers)[::-1]
    answers = {}
    for label in labels:
        time.sleep(PAUSE_S)
        answers[label] = workers[label].generate(batch.prompts(turn), batch.output_len)
        tokens_per_s = batch.num_prompts * batch.output_len / answers[label].seconds
        print(f"turn {turn + 1}: {label:24} {tokens_per_s:8.1f} output tok/s", flush=True)
    return answers


def _summarize(label: str, baseline: str, turns: list[dict[str, Answer]], batch: Batch) -> dict[str, Any]:
    num_tokens = batch.num_prompts * batch.output_len
    pairs = [(turn[label], turn[baseline]) for turn in turns]
    num_equal = sum(
        own == other
        for answer, reference in pairs
        for own, other in zip(answer.token_ids, reference.token_ids, strict=True)
    )
    return {
        "output_tokens_per_s": spread([num_tokens / answer.seconds for answer, _ in pairs]),
        "ratio_to_baseline": spread([reference.seconds / answer.seconds for answer, reference in pairs]),
        "equal_sequences": num_equal,
        "num_sequences": len(pairs) * batch.num_prompts,
    }


def print_contest(title: str, result: dict[str, Any]) -> None:
    """Prints one row for each entrant."""
    rows = []
    for label, entry in result["entrants"].items():
        rate, ratio = entry["output_tokens_per_s"], entry["ratio_to_baseline"]
        equal = f"{entry['equal_sequences']}/{entry['num_sequences']}"
        extremes = f"{ratio['min']:.2f} - {ratio['max']:.2f}"
        rows.append((label, float(rate["median"]), float(ratio["median"]), extremes, equal))
    print_table(title, ("engine", "output tok/s", f"ratio to {result['baseline']}", "range", "equal sequences"), rows)
