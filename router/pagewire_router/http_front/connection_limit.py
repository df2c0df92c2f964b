"""Bounds how many connections are open, so that clients that hold them keep nobody else out."""

import asyncio
import contextlib
import logging
import resource
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

MAX_REFUSED = 256
"""Most connections beyond the limit, each open until its first request is refused."""


OTHER_FILES = 1024
"""Open files that are left for all else that the process does."""
_log = logging.getLogger(__name__)


def allowed_connections(wanted: int) -> int:
    """How many connections the limit of open files leaves room for, which is raised as far as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + MAX_REFUSED + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    # Some systems have a limit below what they tell.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    allowed = min(wanted, max(soft - MAX_REFUSED - OTHER_FILES, soft // 4))
    if allowed < wanted:
        _log.warning("HTTP: %d connections at most, not %d: %d files may be open (ulimit -n)", allowed, wanted, soft)
    return allowed


class Held(Protocol):
    """A connection."""

    transport: asyncio.Transport


class ConnectionLimit:
    """All connections of one server.

    At the limit a new one takes the place of the one that has been longest without a request, be it that its client
    keeps it for later or that it has sent half a head. If all have requests, the new one is refused.
    """

    def __init__(self, max_connections: int, refuse: Callable[..., Awaitable[Any]]) -> None:
        """refuse: the ASGI application of connections beyond the limit."""
        self.refuse = refuse
        self._max_connections = max_connections
        self._open: set[Held] = set()
        self._idle: dict[Held, None] = {}
        """Open ones without a request, longest first."""
        self._refused: set[Held] = set()

    def is_beyond(self, connection: Held) -> bool:
        """Takes in a new connection. Returns whether it must be refused."""
        if len(self._open) >= self._max_connections and not self._displace():
            if len(self._refused) >= MAX_REFUSED:
                connection.transport.abort()
            self._refused.add(connection)
            return True
        self._open.add(connection)
        self._idle[connection] = None
        return False

    def on_busy(self, connection: Held) -> None:
        """A request has come."""
        self._idle.pop(connection, None)

    def on_idle(self, connection: Held) -> None:
        """All requests are answered."""
        if connection in self._open:
            self._idle[connection] = None

    def on_lost(self, connection: Held) -> None:
        """The connection has ended."""
        self._forget(connection)
        self._refused.discard(connection)

    def close_idle(self) -> None:
        """Closes the connections without a request."""
        for connection in list(self._idle):
            connection.transport.close()

    def _displace(self) -> bool:
        idle = next(iter(self._idle), None)
        if idle is None:
            return False
        self._forget(idle)
        idle.transport.abort()
        return True

    def _forget(self, connection: Held) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)
