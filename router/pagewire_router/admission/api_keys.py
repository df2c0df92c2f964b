"""API keys, which say who may call the service. They come from a file that may change, and are kept as digests."""

import hashlib
import hmac
from typing import NamedTuple

from pagewire_router.admission.reloaded_file import ReloadedFile
from pagewire_router.caller import Identity


class _Key(NamedTuple):
    digest: bytes
    identity: Identity


class ApiKeys:
    """The keys of a file: one on each line, with a name behind it if it has one.

    Empty lines and lines that begin with # are skipped. Keys with the same name are the same client's, so that a key
    can be replaced.
    """

    def __init__(self, path: str) -> None:
        self._file = ReloadedFile(path, "API keys", _parse, is_secret=True)

    def read(self) -> None:
        """Reads the file. Raises FileError."""
        self._file.read()

    def find(self, key: str) -> Identity | None:
        """Whose key it is; None: it is not known."""
        presented, found = _digest(key.encode()), None
        for each in self._file.value:  # All digests are compared, so that the time taken reveals nothing.
            if hmac.compare_digest(each.digest, presented):
                found = each.identity
        return found


def _parse(content: bytes) -> tuple[_Key, ...]:
    lines = [line.strip() for line in content.splitlines()]
    keys = [_key(line) for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise ValueError("there is no key in it; one is expected on each line")
    return tuple(keys)


def _key(line: bytes) -> _Key:
    key, *rest = line.split(None, 1)
    digest = _digest(key)
    if not rest:
        return _Key(digest, Identity(digest.hex()))
    name = rest[0].decode(errors="replace").strip()
    return _Key(digest, Identity(f"key:{name}", name))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
