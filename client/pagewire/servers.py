"""The servers of one client: which of several addresses a call goes to.

A target names one address, several separated by commas, or a name with several addresses behind it (dns:///NAME:PORT).
Any server can take any request. A call goes to the server with the fewest of this client's calls, among those that have
not failed lately; what one refuses is tried at the next at once.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc

from pagewire.channels import ChannelPool, Connection
from pagewire.errors import InvalidRequest, PagewireError, QueueFull, Unavailable
from pagewire.proxies import proxy_in_use

AWAY_S = 1.0
"""A server that has failed is asked again after so long, or when all others have failed too."""
LOOK_UP_AGAIN_S = 30.0
LOOK_UP_AGAIN_AFTER_FAILURE_S = 1.0
LOOK_UP_TIMEOUT_S = 5.0


def split_targets(target: str | Sequence[str]) -> list[str]:
    """The addresses of a target. Raises InvalidRequest."""
    texts = [target] if isinstance(target, str) else list(target) if isinstance(target, Sequence) else []
    targets: list[str] = []
    for text in texts if all(isinstance(text, str) for text in texts) else []:
        scheme, colon, addresses = text.partition(":")
        if scheme in ("ipv4", "ipv6") and colon:
            targets += [f"{scheme}:{address.strip()}" for address in addresses.split(",")]
        else:
            targets += [address.strip() for address in text.split(",")]
    if not targets or not all(targets):
        accepted = "HOST:PORT, dns:///NAME:PORT, unix:PATH, or several of them"
        raise InvalidRequest.of_field("target", f"{target!r} given, accepted: {accepted}")
    return list(dict.fromkeys(targets))


class Server:
    """One address."""

    def __init__(self, address: str, channels: ChannelPool) -> None:
        self.address = address
        self.channels = channels
        self.away_until_s = 0.0
        """time.monotonic() until which others are asked first."""


class Servers:
    """All servers of one client. Belongs to the event loop that uses it first."""

    def __init__(
        self, targets: Sequence[str], credentials: grpc.ChannelCredentials | None, *, max_message_bytes: int
    ) -> None:
        self._credentials = credentials
        self._max_message_bytes = max_message_bytes
        self._given: dict[str, Server] = {}
        """By target; those of names with several addresses are not among them."""
        self._found: dict[tuple[str, str], Server] = {}
        """By name and address."""
        self._names = [target for target in targets if _is_name(target)]
        for target in targets:
            if target not in self._names:
                self._given[target] = Server(target, self._pool(target))
        self._look_up_at_s = 0.0
        self._looking: asyncio.Lock | None = None

    @property
    def all(self) -> list[Server]:
        """The servers that are known now."""
        return [*self._given.values(), *self._found.values()]

    async def look_up(self) -> None:
        """Looks names up, if there are any and it is time to. Raises Unavailable if there is no server then."""
        if not self._names or time.monotonic() < self._look_up_at_s:
            return
        self._looking = self._looking or asyncio.Lock()
        async with self._looking:
            if time.monotonic() < self._look_up_at_s:
                return
            for name in self._names:
                await self._look_up(name)
            self._look_up_at_s = time.monotonic() + LOOK_UP_AGAIN_S
        if not self.all:
            self._look_up_at_s = 0.0
            raise Unavailable(f"no pagewire server is behind {', '.join(self._names)}")

    @contextmanager
    def lease(self, server: Server | None = None) -> Iterator[Connection]:
        """Lends a connection for the time of one call, to a server if one is given, else to one that it chooses.

        Raises Cancelled once the client is closed.
        """
        with (server or self._choose()).channels.lease() as connection:
            yield connection

    def on_failed(self, address: str, error: PagewireError) -> bool:
        """A call has failed. Returns whether another server is to be asked at once."""
        if not isinstance(error, Unavailable | QueueFull):
            return False
        servers, now_s = self.all, time.monotonic()
        for server in servers:
            if server.address == address:
                server.away_until_s = now_s + max(AWAY_S, error.retry_after_s or 0.0)
        if self._names:
            self._look_up_at_s = min(self._look_up_at_s, now_s + LOOK_UP_AGAIN_AFTER_FAILURE_S)
        return any(server.away_until_s <= now_s for server in servers)

    async def close(self) -> None:
        """Closes all connections, which ends the calls that are open."""
        for server in self.all:
            await server.channels.close()

    def _choose(self) -> Server:
        servers = self.all
        if len(servers) == 1:
            return servers[0]
        now_s = time.monotonic()
        here = [server for server in servers if server.away_until_s <= now_s]
        if not here:
            return min(servers, key=lambda server: server.away_until_s)
        return min(here, key=lambda server: server.channels.num_open)

    def _pool(self, address: str, name: str | None = None) -> ChannelPool:
        return ChannelPool(address, self._credentials, max_message_bytes=self._max_message_bytes, name=name)

    async def _look_up(self, target: str) -> None:
        """Takes in the addresses behind a name. What was found before stays if it cannot be looked up now."""
        name = target.removeprefix("dns:").rpartition("/")[2]
        host, _, port = name.rpartition(":")
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                infos = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError, TimeoutError):
            return
        addresses = {_address(*info[4][:2]) for info in infos}
        for key in [key for key in self._found if key[0] == target and key[1] not in addresses]:
            if not self._found[key].channels.num_open:
                await self._found.pop(key).channels.close()
        for address in sorted(addresses):
            if (target, address) not in self._found:
                self._found[target, address] = Server(address, self._pool(address, name))


def _is_name(target: str) -> bool:
    """Whether names are looked up here: gRPC does it if a proxy stands between, which knows them."""
    return target.startswith("dns://") and proxy_in_use(target) is None


def _address(host: str | int, port: str | int) -> str:
    return f"[{host}]:{port}" if ipaddress.ip_address(str(host).partition("%")[0]).version == 6 else f"{host}:{port}"
