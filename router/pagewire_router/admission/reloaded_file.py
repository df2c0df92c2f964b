"""A file that says who may do what, and is read again when it changes, such as a mounted secret of Kubernetes."""

import logging
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

REREAD_S = 1.0
"""Shortest time between two reads of the file."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO

T = TypeVar("T")


class FileError(Exception):
    """The file cannot be used. The message names the file and the reason, and shows nothing of its content."""


class ReloadedFile(Generic[T]):
    """What a file holds. If it cannot be used any more, what was read last stays.

    A file that is just being written must not lock everybody out.
    """

    def __init__(self, path: str, what: str, parse: Callable[[bytes], T], *, is_secret: bool = False) -> None:
        """
        Args:
            what: what messages call the file.
            parse: makes the value of the content; raises ValueError with a reason that shows nothing of it.
            is_secret: warns if other users may read the file.
        """
        self._path = Path(path)
        self._what = what
        self._parse = parse
        self._is_secret = is_secret
        self._content: bytes | None = None
        self._value: T
        self._read_s = 0.0
        self._is_failing = False

    def read(self) -> None:
        """Reads the file if it has changed. Raises FileError."""
        self._read_s = time.monotonic()
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise FileError(f"{self._what} {self._path}: {error.strerror}") from None
        if self._is_secret and self._content is None and self._path.stat().st_mode & OTHERS:
            logger.warning("%s %s: other users of this machine may read the file", self._what, self._path)
        if content == self._content:
            return
        try:
            value = self._parse(content)
        except ValueError as error:
            raise FileError(f"{self._what} {self._path}: {error}") from None
        if self._content is not None:
            logger.warning("%s %s: read again", self._what, self._path)
        self._content, self._value = content, value

    @property
    def value(self) -> T:
        """What the file holds now, as far as it can be used. To be read after read()."""
        if time.monotonic() - self._read_s >= REREAD_S:
            try:
                self.read()
            except FileError as error:
                if not self._is_failing:
                    logger.error("%s; what was read before stays valid", error)
                self._is_failing = True
            else:
                self._is_failing = False
        return self._value
