"""The client that has made a call, as fairness between clients tells them apart."""

from typing import NamedTuple


class Caller(NamedTuple):
    """One client, as far as it can be told from others."""

    owner: str
    """Digest of the client's API key; without a key, the address of its host."""
    connection: str
    """The connection, among those of its owner."""

    @staticmethod
    def of(peer: str, key_digest: str = "") -> "Caller":
        """The caller at an address.

        Args:
            peer: address of the connection as gRPC writes it, such as ipv4:HOST:PORT.
            key_digest: digest of the API key that the call carries; empty if it carries none.
        """
        return Caller(key_digest or peer.rpartition(":")[0], peer)
