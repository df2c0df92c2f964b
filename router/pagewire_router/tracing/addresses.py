"""OpenTelemetry's attributes for addresses in gRPC's notation."""

import socket
from urllib.parse import unquote

from opentelemetry.util.types import AttributeValue
from pagewire_common.tracing import conventions as names

WILDCARDS = ("", "0.0.0.0", "::")


def server_attributes(listen: str) -> dict[str, AttributeValue]:
    """Attributes of a server that listens on host:port or unix:PATH. A wildcard host becomes the machine's name."""
    host, port = split(listen)
    return _attributes(
        socket.gethostname() if host in WILDCARDS else host, port, names.SERVER_ADDRESS, names.SERVER_PORT
    )


def client_attributes(peer: str) -> dict[str, AttributeValue]:
    """Attributes of a call's peer, given as ipv4:HOST:PORT, ipv6:[HOST]:PORT or unix:PATH."""
    return _attributes(*split(peer), names.CLIENT_ADDRESS, names.CLIENT_PORT)


def split(address: str) -> tuple[str, int | None]:
    """Host and port of an address; path and None for a Unix socket."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return rest, None
    if scheme in ("ipv4", "ipv6"):
        address = unquote(rest)
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else None


def _attributes(host: str, port: int | None, host_key: str, port_key: str) -> dict[str, AttributeValue]:
    if not host:  # Clients of a Unix socket have no name.
        return {}
    return {host_key: host} if port is None else {host_key: host, port_key: port}
