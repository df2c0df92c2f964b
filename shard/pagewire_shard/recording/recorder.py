"""Writes what a shard runs to a ring of two files, each of half the size that it may take.

When a file is full, it takes the place of the one before (`FILE.1`), and a new one begins with what is known of all
sequences, so that each can be replayed by itself.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pagewire.v1 import shard_pb2

from pagewire_shard.recording.records import MAGIC, NUMBERS, Kind, outcome, packed

MODE = 0o600
"""Of the files: prompts and answers are in them, as token ids."""
PREVIOUS = ".1"


class Recorder:
    """Belongs to the step thread. Every record is written at once, so that a process that is killed leaves it."""

    def __init__(self, path: str, max_bytes: int) -> None:
        """path: of the newer file. max_bytes: of both together, but for records that are larger. Raises OSError."""
        self._path = path
        self._max_bytes = max_bytes // 2
        self._start = b""
        self._file = -1
        self._num_bytes = 0
        self._admits: dict[int, shard_pb2.Admit] = {}
        """What plans have said of each sequence that is there; tokens are those that it began with."""
        self._grammars: dict[str, shard_pb2.Prepare] = {}
        self._written_grammars: set[str] = set()
        self._max_inflight = 1
        self._open()

    @property
    def is_full(self) -> bool:
        """The next plan belongs to another file, see begin_file."""
        return self._num_bytes > self._max_bytes

    def begin(self, shard: Mapping[str, Any]) -> None:
        """Writes START: config, the fields of ShardConfig that say how to run; and what was made of them."""
        self._start = json.dumps(shard).encode()
        self._write(Kind.START, self._start)

    def begin_file(self, known: Mapping[int, tuple[list[int], int, bool]], num_cached: int) -> None:
        """Begins another file. known: for each sequence its tokens, how many of them are computed, and whether it has
        stopped; no step is in flight."""
        os.close(self._file)
        os.replace(self._path, self._path + PREVIOUS)
        self._open()
        self._write(Kind.START, self._start)
        self._write(Kind.EPOCH, NUMBERS.pack(self._max_inflight, num_cached))
        for seq_id, (tokens, num_computed, has_stopped) in known.items():
            admit = shard_pb2.Admit()
            admit.CopyFrom(self._admits[seq_id])
            admit.token_ids[:] = tokens
            self._write_grammar(admit.grammar)
            self._write(Kind.SEQUENCE, NUMBERS.pack(num_computed, has_stopped) + admit.SerializeToString())

    def on_prepare(self, message: shard_pb2.Prepare) -> None:
        """A grammar may be named from now on. May be called on another thread."""
        self._grammars[message.name] = message

    def on_forget(self, names: Iterable[str]) -> None:
        """These are not named any more by admissions to come. May be called on another thread."""
        for name in names:
            self._grammars.pop(name, None)

    def on_epoch(self, max_inflight: int, num_cached: int) -> None:
        """An epoch begins."""
        self._admits.clear()
        self._max_inflight = max_inflight
        self._write(Kind.EPOCH, NUMBERS.pack(max_inflight, num_cached))

    def on_plan(self, plan: shard_pb2.StepPlan) -> None:
        """The plan is about to be run."""
        for fork in plan.forks:
            child = shard_pb2.Admit()
            child.CopyFrom(self._admits[fork.parent_seq_id])
            child.seq_id, child.sampling_params.seed = fork.child_seq_id, fork.seed
            child.ClearField("fork_from")
            self._admits[fork.child_seq_id] = child
        for admit in plan.admits:
            self._write_grammar(admit.grammar)
            self._admits[admit.seq_id] = admit
        for seq_id in plan.release_seq_ids:
            self._admits.pop(seq_id, None)
        self._write(Kind.PLAN, plan.SerializeToString())

    def on_result(self, result: shard_pb2.StepResult) -> None:
        """A step is done."""
        self._write(Kind.RESULT, outcome(result))

    def on_broken(self, error: BaseException) -> None:
        """A plan was refused, or a step broke."""
        self._write(Kind.BROKEN, f"{type(error).__name__}: {error}".encode()[:1000])

    def _write_grammar(self, name: str) -> None:
        if name and name not in self._written_grammars and (message := self._grammars.get(name)) is not None:
            self._written_grammars.add(name)
            self._write(Kind.GRAMMAR, message.SerializeToString())

    def _open(self) -> None:
        if os.path.lexists(self._path):
            os.replace(self._path, self._path + PREVIOUS)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        self._written_grammars.clear()
        self._num_bytes = os.write(self._file, MAGIC)

    def _write(self, kind: Kind, payload: bytes) -> None:
        self._num_bytes += os.write(self._file, packed(kind, payload))
