"""Makes directories for private Unix sockets, and removes those that killed servers have left."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_DIRECTORY_LENGTH = 60
"""A socket's path may have 107 bytes; this leaves room for the names within."""
PREFIX = "pagewire-"
SOCKET = "pagewire.sock"
"""Name of the socket in the directory that serves requests."""
METRICS_SOCKET = "metrics.sock"
"""Name of the one beside it that serves /metrics."""
LOCK = "lock"
"""Name of a file in the directory that the server keeps locked while it lives."""


@contextmanager
def private_directory() -> Iterator[str]:
    """A new directory that only this user can enter, with a path short enough for sockets; removed at the end.

    Directories that dead servers of this user have left are removed first.
    """
    base = Path(tempfile.gettempdir())
    if len(str(base)) > MAX_DIRECTORY_LENGTH:
        base = Path("/tmp")
    _sweep(base)
    directory, lock = _new_directory(base)
    try:
        yield str(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def metrics_socket(address: str) -> str:
    """The path of the socket that serves the metrics of the server whose private socket is `unix:PATH`."""
    return os.path.join(os.path.dirname(address.removeprefix("unix:")), METRICS_SOCKET)


def _new_directory(base: Path) -> tuple[Path, int]:
    """Returns a directory and the descriptor of its lock. It ends with the process; children do not inherit it."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = os.open(directory / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        with contextlib.suppress(OSError):  # on a file system without locks nothing is removed either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / LOCK).exists():
            return directory, lock
        os.close(lock)  # another server has removed it before it was locked


def _sweep(base: Path) -> None:
    for directory in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or another server removes it
            if directory.is_dir() and not directory.is_symlink() and directory.stat().st_uid == os.getuid():
                _remove_if_left(directory)


def _remove_if_left(directory: Path) -> None:
    """Raises BlockingIOError if the directory's server lives, FileNotFoundError if it has no lock file."""
    with (directory / LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
