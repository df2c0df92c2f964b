"""Resolves the targets of --shards to addresses. A dns:/// name stands for all shards behind it, which may change."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DNS_PREFIX = "dns:///"
NOT_THERE = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
"""Errors of a look-up when nobody has the name now, as with a headless Kubernetes service without ready pods."""


@dataclass(frozen=True, slots=True)
class ShardAddress:
    """The address of one shard."""

    target: str
    """host:port, [IPv6]:port or unix:PATH."""
    name: str | None = None
    """Name in the shard's certificate, behind which the shard was found; None: the name in the target."""


class Resolver(Protocol):
    """Resolves names."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """All addresses behind a name, as host:port; none if nobody has it now. Raises OSError if the look-up fails."""


class DnsResolver:
    """The machine's resolver, which uses search domains and /etc/hosts."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """See Resolver."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in NOT_THERE:
                return ()
            raise
        hosts = [str(address[0]) for *_, address in found]
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]


def dns_name(target: str) -> tuple[str, int] | None:
    """Host and port of dns:///NAME:PORT; None for an address of another kind. Raises ValueError if one is missing."""
    if not target.startswith("dns:"):
        return None
    host, _, port = target.removeprefix(DNS_PREFIX).rpartition(":")
    if not target.startswith(DNS_PREFIX) or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{target!r} is not {DNS_PREFIX}NAME:PORT")
    return host, int(port)
