"""Who has made the call that the current task serves: what fairness between clients goes by."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

_key: ContextVar[str] = ContextVar("key", default="")
_peer: ContextVar[Callable[[], str] | None] = ContextVar("peer", default=None)


class Caller(NamedTuple):
    """One client, as far as it can be told from others."""

    owner: str
    """A digest of its API key; without keys, the address of its host."""
    connection: str
    """The connection, among those of its owner."""


def note_key(digest: str) -> None:
    """The current task serves a call with this API key, of which nothing but a digest is kept."""
    _key.set(digest)


def note_peer(peer: Callable[[], str]) -> None:
    """The current task serves a call from this peer, which is asked for when it is needed."""
    _peer.set(peer)


def current_caller() -> Caller:
    """Who called; the same for all where no call is served."""
    peer = _peer.get()
    connection = "" if peer is None else peer()
    return Caller(_key.get() or connection.rpartition(":")[0], connection)
