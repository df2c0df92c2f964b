"""The results of parts and the file that keeps them. It is written after each part, so that an interrupted run keeps
its results."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import print_table

TABLES = dict.fromkeys(("offline", "service", "transformers"), "workload")
"""Groups whose rows share one table."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One part's result, or why there is none."""

    rows: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    skipped: str | None = None
    error: str | None = None
    traceback: Sequence[str] = field(default=())

    @property
    def state(self) -> str:
        return "failed" if self.error else "skipped" if self.skipped else "done"


class Record:
    """The result file."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path = path
        self._head = dict(head)
        self.answers: dict[str, Answer] = {}

    def add(self, name: str, answer: Answer) -> None:
        """Keeps an answer and writes it to disk."""
        self.answers[name] = answer
        parts = {part: {"state": a.state, **asdict(a)} for part, a in self.answers.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The file is replaced as a whole, so that a reader never finds half a file.
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({**self._head, "parts": parts}, indent=1, default=str) + "\n")
        os.replace(unfinished, self._path)

    def rows(self) -> dict[str, Mapping[str, Any]]:
        """All rows, by the name of their part; of several, by that name with their index."""
        return {
            name if index == 0 else f"{name}:{index}": row
            for name, answer in self.answers.items()
            for index, row in enumerate(answer.rows)
        }

    def num_failed(self) -> int:
        """Parts that failed."""
        return sum(answer.state == "failed" for answer in self.answers.values())

    def print_tables(self) -> None:
        """One table for each group of parts, then what failed or was skipped: tracebacks are in the file."""
        tables: dict[str, list[Mapping[str, Any]]] = {}
        for name, answer in self.answers.items():
            group = name.partition(":")[0]
            tables.setdefault(TABLES.get(group, group), []).extend(answer.rows)
        for title, rows in tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            print_table(title, columns, [[_cell(row.get(column)) for column in columns] for row in rows])
        for name, answer in self.answers.items():
            if answer.state != "done":
                print(f"{answer.state}: {name}: {answer.error or answer.skipped}")


def _cell(value: object) -> object:
    return "" if value is None else value
