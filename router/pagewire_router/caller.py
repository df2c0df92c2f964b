"""The client that has made a call, as fairness and limits tell clients apart."""

from typing import NamedTuple


class Identity(NamedTuple):
    """Who has made a call, by what it carries."""

    owner: str
    """Tells clients apart: the name or digest of an API key, the subject of a token."""
    name: str = ""
    """What operators call the client; empty: it has no name."""


class Caller(NamedTuple):
    """One client, as far as it can be told from others."""

    owner: str
    """Its identity's; without one, the address of its host."""
    connection: str
    """The connection, among those of its owner."""
    name: str = ""
    """What operators call it; empty: it has no name."""

    @staticmethod
    def of(peer: str, identity: Identity | None = None) -> "Caller":
        """The caller at an address.

        Args:
            peer: address of the connection as gRPC writes it, such as ipv4:HOST:PORT.
            identity: by what the call carries; None: it need not carry anything.
        """
        if identity is None:
            return Caller(peer.rpartition(":")[0], peer)
        return Caller(identity.owner, peer, identity.name)
