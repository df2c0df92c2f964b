"""The process that compiles grammars; compile_process.py starts it and asks it.

A grammar's author decides how long compiling takes, and how much memory. So each grammar is compiled in a child of its
own, a fork that shares the vocabulary: a child that takes too long is killed, and nothing has to be made anew.

Messages, each with its length (multiprocessing.connection): first the setup, a JSON object that is answered by READY;
then requests: JOB, then a StructuredOutputs or, if the job is withdrawn, nothing. Answers are JSON objects with the
`job`.
"""

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from pagewire.v1 import inference_pb2

from pagewire_shard.grammar.compiler import compile_source, one_line
from pagewire_shard.grammar.errors import SourceRefused, TooCostly
from pagewire_shard.grammar.source_options import SourceOptions
from pagewire_shard.grammar.vocabulary import Vocabulary, VocabularySource, special_tokens

READY = b"ready"
JOB = struct.Struct(">Q?")
"""A job's number, and whether it is withdrawn. The answer, which may be on its way already, comes all the same."""
LENGTH = struct.Struct("!i")
"""What multiprocessing.connection puts before a message."""
MAX_CHILDREN = 4
"""Grammars that are compiled at a time: one that takes long delays others little."""
NICENESS = 5
"""Priority of the process: steps come first where cores are short."""
STACK_BYTES = 1 << 20
"""Stack of the thread that compiles. The shard's threads have more, so that what fits here fits there."""
READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1


class Outcome(StrEnum):
    """What became of a job."""

    COMPILED = "compiled"
    """`text` is the grammar."""
    REFUSED = "refused"
    """`text` says what is not supported."""
    TOO_COSTLY = "too_costly"
    """`text` says which limit was passed."""
    WITHDRAWN = "withdrawn"
    """Nobody wants it any more."""
    KILLED = "killed"
    """Somebody else killed the child."""


@dataclass(slots=True)
class Child:
    """A process that compiles one grammar and writes its answer into a pipe."""

    pid: int
    job: int
    deadline_s: float
    chunks: list[bytes] = field(default_factory=list)
    ended_with: bytes = b""
    """The answer of one that its parent has ended."""


class Forker:
    """Runs jobs in children, MAX_CHILDREN at a time, in the order in which they came."""

    def __init__(
        self, asker: Connection, vocabulary: Vocabulary, options: SourceOptions, setup: dict[str, Any]
    ) -> None:
        self._asker = asker
        self._socket = socket.socket(fileno=os.dup(asker.fileno()))
        self._outbox = bytearray()
        """Answers that the shard has not read yet: it may be busy with sending."""
        self._vocabulary = vocabulary
        self._options = options
        self._pid = os.getpid()
        self._timeout_s = float(setup["compile_timeout_s"])
        self._memory_bytes = int(setup["compile_memory_bytes"])
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._children: dict[int, Child] = {}
        """By the file descriptor of the pipe that they write to."""

    def run(self) -> None:
        """Answers until the shard closes the connection."""
        with suppress(EOFError, OSError):
            while True:
                while self._waiting and len(self._children) < MAX_CHILDREN:
                    self._fork(*self._waiting.popleft())
                self._wait()
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Takes what has come: a request, pieces of answers, the ends of children, deadlines."""
        now_s = time.monotonic()
        deadlines = [child.deadline_s for child in self._children.values()]
        timeout_s = max(0.0, min(deadlines) - now_s) if deadlines else None
        reading: list[Connection | int] = [self._asker, *self._children]
        writing = [self._socket] if self._outbox else []
        readable, writable, _ = select.select(reading, writing, [], timeout_s)
        if writable:
            num_sent = self._socket.send(self._outbox[:READ_BYTES], socket.MSG_DONTWAIT)
            del self._outbox[:num_sent]
        if self._asker in readable:
            message = self._asker.recv_bytes()
            job, is_withdrawn = JOB.unpack_from(message)
            if is_withdrawn:
                self._withdraw(job)
            else:
                self._waiting.append((job, message[JOB.size :]))
        for pipe in self._children.keys() & set(readable):
            chunk = os.read(pipe, READ_BYTES)
            if chunk:
                self._children[pipe].chunks.append(chunk)
            else:
                self._finish(pipe)
        for pipe in [p for p, child in self._children.items() if child.deadline_s <= time.monotonic()]:
            text = f"compiling the grammar takes more than {self._timeout_s:g} s"
            self._end(pipe, encode(Outcome.TOO_COSTLY, text))

    def _withdraw(self, job: int) -> None:
        """Drops a job, unless it is answered already."""
        answer = encode(Outcome.WITHDRAWN, "nobody waits for the grammar any more")
        for pipe in [pipe for pipe, child in self._children.items() if child.job == job]:
            self._end(pipe, answer)
        for waiting in [waiting for waiting in self._waiting if waiting[0] == job]:
            self._waiting.remove(waiting)
            self._send(job, answer)

    def _fork(self, job: int, source: bytes) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._compile_and_exit(source, writing)
        os.close(writing)
        self._children[reading] = Child(pid, job, time.monotonic() + self._timeout_s)

    def _compile_and_exit(self, source: bytes, pipe: int) -> NoReturn:
        """The child: writes its answer and is gone, without any clean-up of what it shares with its parent."""
        with suppress(BaseException):
            # The shard sees that its peer has ended only once nobody holds the socket.
            self._asker.close()
            self._socket.close()
            os.close(sys.stdin.fileno())
            end_with_parent()
            if os.getppid() != self._pid:
                os._exit(0)
            limit_memory(self._memory_bytes)
            limit_cpu(self._timeout_s)
            answers: list[bytes] = []
            thread = threading.Thread(target=lambda: answers.append(self._answer(source)))
            thread.start()
            thread.join()
            rest = memoryview(answers[0])
            while rest:
                rest = rest[os.write(pipe, rest) :]
            os._exit(0)
        os._exit(1)

    def _answer(self, source: bytes) -> bytes:
        before = taken_bytes()
        try:
            outputs = inference_pb2.StructuredOutputs.FromString(source)
            text = compile_source(outputs, self._vocabulary, self._options)
        except SourceRefused as error:
            return encode(Outcome.REFUSED, str(error))
        except RecursionError:
            return encode(Outcome.TOO_COSTLY, "the grammar is nested too deeply")
        except (TooCostly, MemoryError) as error:
            return encode(Outcome.TOO_COSTLY, str(error) or self._memory_message())
        except Exception as error:  # what the source holds is nothing that its reader expects there
            return encode(Outcome.REFUSED, one_line(f"the grammar cannot be read: {type(error).__name__}: {error}"))
        return encode(Outcome.COMPILED, text, num_bytes=max(0, taken_bytes() - before))

    def _finish(self, pipe: int) -> None:
        """Sends on what a child has answered, or how it ended without a whole answer."""
        child = self._children.pop(pipe)
        os.close(pipe)
        _, status = os.waitpid(child.pid, 0)
        if child.ended_with:
            answer = child.ended_with
        elif child.chunks and status == 0:
            answer = b"".join(child.chunks)
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGTERM):
            answer = encode(Outcome.KILLED, "the process that compiled the grammar was killed")
        else:
            # Rust aborts if it gets no memory, and a stack that is too small is a segmentation fault.
            answer = encode(Outcome.TOO_COSTLY, self._memory_message())
        self._send(child.job, answer)

    def _end(self, pipe: int, answer: bytes) -> None:
        """Kills a child."""
        child = self._children[pipe]
        child.ended_with = answer
        os.kill(child.pid, signal.SIGKILL)
        self._finish(pipe)

    def _send(self, job: int, answer: bytes) -> None:
        message = json.dumps({**json.loads(answer), "job": job}).encode()
        self._outbox += LENGTH.pack(len(message)) + message

    def _memory_message(self) -> str:
        return f"compiling the grammar takes more than {self._memory_bytes >> 20} MiB, or it is nested too deeply"


def encode(outcome: Outcome, text: str, *, num_bytes: int = 0) -> bytes:
    """An answer, without the job's number."""
    return json.dumps({"outcome": outcome, "text": text, "num_bytes": num_bytes}).encode()


def taken_bytes() -> int:
    """Memory that this process has taken for data, in pages. A fork starts with what its parent had."""
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def limit_memory(more_bytes: int) -> None:
    """Limits the address space to what is taken already and this much more."""
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, taken + more_bytes))


def limit_cpu(more_s: float) -> None:
    """Has the kernel end this process after so much more computing time, in case nobody else does."""
    import resource

    limit_s = int(time.process_time() + more_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))


def end_with_parent() -> None:
    """Asks Linux to kill this process with its parent."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Compiles what comes in on standard input, a socket, until it is closed."""
    import resource

    asker = Connection(os.dup(sys.stdin.fileno()))
    parent = os.getppid()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the shard's to handle.
    os.nice(NICENESS)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))
    setup = json.loads(asker.recv_bytes())
    tokenizer_json = setup["tokenizer_json"]
    eos_token_ids = tuple(setup["eos_token_ids"])
    vocabulary = Vocabulary(VocabularySource(tokenizer_json, setup["num_logits"], eos_token_ids))
    options = SourceOptions(
        special_tokens(tokenizer_json), eos_token_ids, coerce_one_of=setup["coerce_one_of"], lenient=setup["lenient"]
    )
    # Whatever is imported or computed at first use, before the first fork.
    compile_source(inference_pb2.StructuredOutputs(json='{"type": "object"}'), vocabulary, options)
    gc.collect()
    gc.freeze()
    threading.stack_size(STACK_BYTES)
    if os.getppid() != parent:
        return
    asker.send_bytes(READY)
    Forker(asker, vocabulary, options, setup).run()


if __name__ == "__main__":
    main()
