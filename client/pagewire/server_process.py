"""A `pagewire serve` of one's own, on a private Unix socket: started, waited for, and never left behind."""

import _thread
import contextlib
import os
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

from pagewire.errors import StartupError
from pagewire.serve.child import ERROR, READY

STOP_TIMEOUT_S = 15.0
"""Longer than the server's own grace when its parent is gone."""


class ServerProcess:
    """A running server. It ends when this object is closed or collected, and when this process ends in any way.

    Closing waits for its end, and collecting does not: a finalizer runs on whatever thread, within whatever it does.

    Args:
        arguments: of `pagewire serve`: the model and flags.
        command: what to run in place of `pagewire serve`.

    Raises:
        StartupError: it did not come up; the message is its own.
    """

    def __init__(self, arguments: Sequence[str], *, command: Sequence[str] | None = None) -> None:
        # A process group of its own, so that Ctrl-C reaches this process alone; the pipe to its standard input tells it
        # that this process is gone. The socket's directory is the server's to remove: this process may be killed.
        self._process = subprocess.Popen(
            [
                *(command or (sys.executable, "-m", "pagewire", "serve")),
                "--private-socket",
                "--exit-with-parent",
                *arguments,  # last: they may end in "--" and a model
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._owner_pid = os.getpid()
        self._finalizer = weakref.finalize(self, _let_go, self._process, self._owner_pid)
        self.address = self._wait_until_ready()
        """Where it serves."""

    @property
    def pid(self) -> int:
        """Process id of its supervisor."""
        return self._process.pid

    def close(self) -> None:
        """Stops the server and waits for its end."""
        if os.getpid() == self._owner_pid and self._finalizer.detach() is not None:
            _stop(self._process)

    def _wait_until_ready(self) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        errors: deque[str] = deque(maxlen=1)
        relay = _in_background(_relay, self._process.stderr, errors)
        try:
            ready = next((line for line in self._process.stdout if READY in line), None)
        except BaseException:
            self.close()
            raise
        if ready is None:
            status = self._process.wait()
            relay.join()
            self.close()
            raise StartupError(errors[0] if errors else f"the server ended with status {status} before it was ready")
        _in_background(_relay, self._process.stdout, errors)
        return ready.partition(READY)[2].strip()


def _in_background(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _relay(stream: IO[str], errors: "deque[str]") -> None:
    """Passes lines on to standard error; keeps the last error back, which becomes an exception."""
    with contextlib.suppress(ValueError):  # closed meanwhile
        for line in stream:
            before, mark, message = line.rstrip("\n").partition(ERROR)
            if mark and (not before or before.endswith(": ")):
                errors.append(message)
            else:
                sys.stderr.write(line)


def _let_go(process: "subprocess.Popen[str]", owner_pid: int) -> None:
    """Has the server stopped by a thread of its own. Not threading's: starting one takes locks."""
    if os.getpid() != owner_pid:  # a forked copy of the owner: the server is not its own
        return
    with contextlib.suppress(RuntimeError):  # the interpreter ends: so does the pipe, which stops the server too
        _thread.start_new_thread(_stop, (process,))


def _stop(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()  # as if this process were gone
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children see the end of their standard input
        process.wait()
