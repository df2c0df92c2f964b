"""Runs `pagewire serve` on a private Unix socket as a child of this process, and makes sure that it ends."""

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
"""Longer than the server's own grace after its parent's end."""


class ServerProcess:
    """A running server. It ends when this object is closed or garbage-collected, and when this process ends in any way.

    close() waits for the server's end. The finalizer does not, since it may run on any thread at any time.

    Args:
        arguments: arguments of `pagewire serve`: flags and the model.
        command: command to run in place of `pagewire serve`.

    Raises:
        StartupError: the server did not start; the message is its own.
    """

    def __init__(self, arguments: Sequence[str], *, command: Sequence[str] | None = None) -> None:
        # The server has its own process group, so that Ctrl-C reaches this process alone. The end of its standard input
        # tells it that this process has ended. It removes the socket's directory itself: this process may be killed.
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
        """The address that the server listens on."""

    @property
    def pid(self) -> int:
        """Process id of the server's supervisor."""
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
    """Passes lines on to standard error, except for the last error, which becomes an exception."""
    with contextlib.suppress(ValueError):  # closed meanwhile
        for line in stream:
            before, mark, message = line.rstrip("\n").partition(ERROR)
            if mark and (not before or before.endswith(": ")):
                errors.append(message)
            else:
                sys.stderr.write(line)


def _let_go(process: "subprocess.Popen[str]", owner_pid: int) -> None:
    """Stops the server on a new thread. threading.Thread would take locks, which a finalizer must not."""
    if os.getpid() != owner_pid:  # a forked copy of the owner must not stop the owner's server
        return
    with contextlib.suppress(RuntimeError):  # the interpreter ends, which closes the pipe and so stops the server too
        _thread.start_new_thread(_stop, (process,))


def _stop(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()  # the server takes this for the end of this process
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children see the end of their standard input
        process.wait()
