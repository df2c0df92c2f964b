"""Compiles grammars in a process that can be killed and runs compile_worker.py."""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from subprocess import DEVNULL, Popen

from pagewire_shard.grammar.compile_worker import JOB, READY, Outcome
from pagewire_shard.grammar.compiler import CompiledGrammar
from pagewire_shard.grammar.errors import CompilerGone, GrammarError, NoRoom, SourceRefused, TooCostly, Withdrawn
from pagewire_shard.grammar.limits import GrammarLimits
from pagewire_shard.grammar.vocabulary import VocabularySource

logger = logging.getLogger(__name__)

MAX_START_S = 60.0
"""Longest time for the process to start, of which most goes into the vocabulary."""
SILENCE_S = 10.0
"""How much longer than the timeout of one grammar the process may say nothing while jobs wait; then it is killed."""
MAX_ATTEMPTS = 2
"""Times that a job is begun if the process, or its child, is killed from outside."""
MAX_WAITING = 1024
"""Most jobs that may wait; more are refused."""

OnCompiled = Callable[[CompiledGrammar | GrammarError], None]


@dataclass(slots=True, eq=False)
class Job:
    """A grammar to compile."""

    source: bytes
    on_done: OnCompiled
    num_attempts: int = 0
    is_withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Worker:
    """A running process and the connection to it."""

    process: Popen[bytes]
    connection: Connection

    @staticmethod
    def start(setup: bytes) -> "Worker":
        """Starts a process without the shard's environment and open files. Raises CompilerGone."""
        path = os.pathsep.join(path for path in sys.path if path)
        environment = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        ours, theirs = socket.socketpair()
        with theirs:
            command = (sys.executable, "-P", "-m", "pagewire_shard.grammar.compile_worker")
            process = Popen(command, stdin=theirs.fileno(), stdout=DEVNULL, stderr=DEVNULL, env=environment)
        worker = Worker(process, Connection(ours.detach()))
        try:
            worker.connection.send_bytes(setup)
            if worker.connection.poll(MAX_START_S) and worker.connection.recv_bytes() == READY:
                return worker
        except (EOFError, OSError):
            pass
        worker.kill()
        raise CompilerGone("the process that compiles grammars does not start")

    def kill(self) -> None:
        """Ends the process and its children."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.connection.close()


class CompileProcess:
    """Passes jobs to the process and answers back, on a thread of its own. The process starts with the first job."""

    def __init__(
        self, source: VocabularySource, limits: GrammarLimits, *, coerce_one_of: bool = False, lenient: bool = False
    ) -> None:
        self._setup = json.dumps(
            {
                "tokenizer_json": source.tokenizer_json,
                "num_logits": source.num_logits,
                "eos_token_ids": source.eos_token_ids,
                "compile_timeout_s": limits.compile_timeout_s,
                "compile_memory_bytes": limits.compile_memory_bytes,
                "coerce_one_of": coerce_one_of,
                "lenient": lenient,
            }
        ).encode()
        self._max_silence_s = limits.compile_timeout_s + SILENCE_S
        self._lock = threading.Lock()
        self._new: deque[Job] = deque()
        self._withdrawn: deque[Job] = deque()
        """Those that the process has to be told of."""
        self._wake_reader, self._wake_writer = os.pipe()
        self._jobs: dict[int, Job] = {}
        """Those that the process has, by number."""
        self._num_sent = 0
        self._heard_s = 0.0
        self._worker: Worker | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self.num_starts = 0
        """Processes started so far."""

    @property
    def worker_pid(self) -> int | None:
        """The running process; None: there is none."""
        return None if self._worker is None else self._worker.process.pid

    @property
    def num_jobs(self) -> int:
        """Jobs that are not answered yet."""
        return len(self._new) + len(self._jobs)

    def submit(self, source: bytes, on_done: OnCompiled) -> Job:
        """Has a serialized StructuredOutputs compiled. on_done is called once, on this thread or the object's own."""
        job = Job(source, on_done)
        with self._lock:
            if self._is_closed:
                error: GrammarError | None = CompilerGone("the shard stops")
            elif self.num_jobs >= MAX_WAITING:
                error = NoRoom(f"{MAX_WAITING} grammars wait to be compiled; ask again later")
            else:
                error = None
                self._new.append(job)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="grammar-compiler", daemon=True)
                    self._thread.start()
                os.write(self._wake_writer, b"\0")
        if error is not None:
            on_done(error)
        return job

    def withdraw(self, job: Job) -> None:
        """Nobody wants a job any more: it ends with Withdrawn, unless it has ended."""
        with self._lock:
            if not self._is_closed:
                job.is_withdrawn = True
                self._withdrawn.append(job)
                os.write(self._wake_writer, b"\0")

    def close(self) -> None:
        """Ends the process. Jobs that are not answered yet fail."""
        with self._lock:
            self._is_closed = True
            os.write(self._wake_writer, b"\0")
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._send_new()
                self._receive()
            except (EOFError, OSError):
                self._restart("the process that compiles grammars ended")
            except CompilerGone as error:
                self._restart(str(error))
        self._discard_worker()
        self._fail_all(CompilerGone("the shard stops"))

    def _send_new(self) -> None:
        """Sends jobs to the process, which starts if there is none. Raises OSError and CompilerGone."""
        while self._new:
            job = self._new[0]
            if job.is_withdrawn:
                self._new.popleft().on_done(Withdrawn("it is withdrawn"))
                continue
            job.num_attempts += 1
            if self._worker is None:
                self.num_starts += 1
                self._worker = Worker.start(self._setup)
            self._num_sent += 1
            if not self._jobs:
                self._heard_s = time.monotonic()
            self._jobs[self._num_sent] = job
            self._new.popleft()
            self._worker.connection.send_bytes(JOB.pack(self._num_sent, False) + job.source)
        while self._withdrawn:
            job = self._withdrawn.popleft()
            number = next((number for number, sent in self._jobs.items() if sent is job), None)
            if number is not None and self._worker is not None:
                self._worker.connection.send_bytes(JOB.pack(number, True))

    def _receive(self) -> None:
        """Waits for an answer or a new job. Raises EOFError, OSError and CompilerGone."""
        connections: list[Connection | int] = [self._wake_reader]
        if self._worker is not None:
            connections.append(self._worker.connection)
        silence_left_s = self._heard_s + self._max_silence_s - time.monotonic() if self._jobs else None
        if silence_left_s is not None and silence_left_s <= 0:
            raise CompilerGone("the process that compiles grammars hangs")
        ready = wait(connections, silence_left_s)
        if self._wake_reader in ready:
            os.read(self._wake_reader, 4096)
        if self._worker is not None and self._worker.connection in ready:
            self._take(self._worker.connection.recv_bytes())

    def _take(self, message: bytes) -> None:
        """Passes an answer on."""
        answer = json.loads(message)
        self._heard_s = time.monotonic()
        job = self._jobs.pop(answer["job"])
        text = answer["text"]
        match Outcome(answer["outcome"]):
            case Outcome.COMPILED:
                job.on_done(CompiledGrammar(text, answer["num_bytes"]))
            case Outcome.REFUSED:
                job.on_done(SourceRefused(text))
            case Outcome.TOO_COSTLY:
                job.on_done(TooCostly(text))
            case Outcome.WITHDRAWN:
                job.on_done(Withdrawn(text))
            case Outcome.KILLED:
                self._retry([job], text)

    def _restart(self, reason: str) -> None:
        """Discards the process; the next job starts another one."""
        logger.warning("%s", reason)
        self._discard_worker()
        jobs = list(self._jobs.values())
        if not jobs and self._new:  # The process does not start: that was an attempt of the first job.
            jobs = [self._new.popleft()]
        self._jobs.clear()
        self._retry(jobs, reason)

    def _retry(self, jobs: list[Job], reason: str) -> None:
        for job in jobs:
            if job.num_attempts >= MAX_ATTEMPTS:
                job.on_done(CompilerGone(reason))
            else:
                self._new.append(job)

    def _discard_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _fail_all(self, error: GrammarError) -> None:
        jobs = [*self._jobs.values(), *self._new]
        self._jobs.clear()
        self._new.clear()
        for job in jobs:
            job.on_done(error)
