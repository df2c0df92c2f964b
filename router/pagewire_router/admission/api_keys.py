"""API keys, which say who may call the service. They come from a file that may change, and are kept as digests."""

import hashlib
import hmac
import logging
import stat
import time
from pathlib import Path

from pagewire_router.errors import Unauthenticated

logger = logging.getLogger(__name__)

REREAD_S = 1.0
"""Shortest time between two reads of the file."""
SCHEME = "bearer"
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class ApiKeysError(Exception):
    """The file cannot be used. The message names the file and the reason, and shows nothing of its content."""


class ApiKeys:
    """The keys of a file: one on each line. Empty lines and lines that begin with # are skipped."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._content = b""
        self._digests: tuple[bytes, ...] = ()
        self._read_s = 0.0
        self._is_failing = False

    def read(self) -> None:
        """Reads the file if it has changed. Raises ApiKeysError."""
        self._read_s = time.monotonic()
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise ApiKeysError(f"API keys {self._path}: {error.strerror}") from None
        if not self._content and self._path.stat().st_mode & OTHERS:
            logger.warning("API keys %s: other users of this machine may read the file", self._path)
        if content == self._content:
            return
        lines = [line.strip() for line in content.splitlines()]
        keys = [line for line in lines if line and not line.startswith(b"#")]
        if not keys:
            raise ApiKeysError(f"API keys {self._path}: there is no key in it; one is expected on each line")
        if self._content:
            logger.warning("API keys %s: read again, %d keys", self._path, len(keys))
        self._content, self._digests = content, tuple(_digest(key) for key in keys)

    def check(self, authorization: str) -> str:
        """Checks the value of an authorization header; returns the digest of its key. Raises Unauthenticated."""
        self._read_again()
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != SCHEME or not key:
            raise Unauthenticated("an API key is needed: send the metadata 'authorization: Bearer KEY'")
        presented = _digest(key.strip().encode())
        is_known = False
        for digest in self._digests:  # All digests are compared, so that the time taken reveals nothing.
            is_known |= hmac.compare_digest(digest, presented)
        if not is_known:
            raise Unauthenticated("the API key is not known here")
        return presented.hex()

    def _read_again(self) -> None:
        if time.monotonic() - self._read_s < REREAD_S:
            return
        try:
            self.read()
        except ApiKeysError as error:
            # A file that is just being written must not lock everybody out.
            if not self._is_failing:
                logger.error("%s; the keys read before stay valid", error)
            self._is_failing = True
        else:
            self._is_failing = False


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
