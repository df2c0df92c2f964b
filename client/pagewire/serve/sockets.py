"""Where private Unix sockets live."""

import tempfile
from pathlib import Path

MAX_DIRECTORY_LENGTH = 60
"""A socket's path may have 107 bytes; this leaves room for the names within."""


def private_directory() -> "tempfile.TemporaryDirectory[str]":
    """A new directory that only this user can enter, with a path short enough for sockets."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > MAX_DIRECTORY_LENGTH:
        base = Path("/tmp")
    return tempfile.TemporaryDirectory(prefix="pagewire-", dir=base, ignore_cleanup_errors=True)
