"""Starts one router and its shards, keeps them running, and stops them in order.

Start: all processes start at once; the router waits for its shards. A child that ends before the router is ready fails
the start with its own message. Later, a child that ends is started again on the same address: the router connects to
the new shard and resumes its sequences, and a new router finds the shards with their caches. A child that hangs after
it was ready is killed and started again. The ranks of a shard group cannot go on without each other: when one ends, the
others are killed, and all are started again.

Stop: on SIGTERM, SIGINT or the parent's end, the router drains and releases the shards, then the shards end. Children
are given the grace, and MARGIN_S more before they are killed, so that clients get answers. A second signal kills all
children at once.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pagewire.serve.child import Child, tell
from pagewire.serve.commands import SPARE_COMMAND, RouterCommand, ShardCommand, router_command, shard_command
from pagewire.serve.config import ServeConfig
from pagewire.serve.gpus import shard_environment
from pagewire.serve.probe import Probe, is_alive, wait_until_dead
from pagewire.serve.sockets import SOCKET, private_directory
from pagewire.serve.spares import Spares

STDIN = 0
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STEADY_S = 10.0
"""A child that has run for this long is started again at once."""
STABLE_S = 60.0
"""After a child has run for this long, its restart delay is reset."""
ORPHAN_GRACE_S = 5.0
"""Grace after the parent's end, when nobody waits for the answers."""
FAILED_START_GRACE_S = 1.0
"""Grace after a failed start, when no request runs yet."""
SHARD_GRACE_S = 3.0
"""Grace that the shards get even if the router has used up all of it."""
MARGIN_S = 5.0
"""How long children may take to end after their grace before they are killed."""


@dataclass(slots=True, eq=False)
class _Role:
    """The router or one of the shards, which one child process after another runs."""

    name: str
    command: Sequence[str]
    health: str
    """Address of the child's health service."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables added to those of this process."""
    child: Child | None = None

    async def start(self, spares: Spares | None = None) -> Child:
        """Starts the command; spares: one of these is to run it, if there is one."""
        spare = await spares.take(self.command, self.environment) if spares is not None else None
        self.child = spare or await Child.start(self.command, self.environment)
        return self.child


class Supervisor:
    """Runs a router and its shards until it is told to stop. One run for each instance.

    Args:
        shard_command, router_command: make the commands of the children.
        spare_command: starts a process that becomes a shard.
        probe: asks a child whether it is alive.
        min_backoff_s: wait before a child is started again; doubles each time the child ends early.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        shard_command: ShardCommand = shard_command,
        router_command: RouterCommand = router_command,
        spare_command: Sequence[str] = SPARE_COMMAND,
        probe: Probe = is_alive,
        min_backoff_s: float = MIN_BACKOFF_S,
    ) -> None:
        self._config = config
        self._shard_command = shard_command
        self._router_command = router_command
        self._probe = probe
        self._min_backoff_s = min_backoff_s
        self._grace_s = config.drain_grace_s
        self._stop = asyncio.Event()
        self._groups: list[list[_Role]] = []
        """The ranks of each shard group."""
        self._router = _Role("router", (), "")
        self._keepers: list[asyncio.Task[None]] = []
        self._spares = Spares(spare_command, config.group_size) if config.spare_shards else None

    async def run(self) -> int:
        """Serves until told to stop. Returns the exit status: 0 after a stop, 1 if the start failed."""
        self._watch_for_stop()
        with private_directory() as directory:
            try:
                failure = await self._start_and_serve(Path(directory))
            finally:
                await self._shut_down()
        if failure is None:
            return 0
        tell(f"error: {failure}")  # after all output of the children
        return 1

    async def _start_and_serve(self, directory: Path) -> str | None:
        """Returns what failed at the start; None after a stop."""
        addresses = self._assign(directory)
        await asyncio.gather(*(role.start() for role in self._roles()))
        failure = await self._wait_until_ready()
        if failure is not None:
            self._grace_s = FAILED_START_GRACE_S
        elif not self._stop.is_set():
            await self._serve(addresses)
        return failure

    def _roles(self) -> list[_Role]:
        return [*self._shards(), self._router]

    def _shards(self) -> list[_Role]:
        return [role for group in self._groups for role in group]

    def _shard_children(self) -> list[Child]:
        return [role.child for role in self._shards() if role.child is not None]

    def _assign(self, directory: Path) -> list[str]:
        """Sets the command of every role. Returns the shards' addresses."""
        addresses = []
        for replica in range(self._config.replicas):
            group: list[_Role] = []
            for rank in range(self._config.group_size):
                address = f"unix:{directory / f'shard-{replica}-{rank}.sock'}"
                addresses.append(address)
                rendezvous = f"unix:{directory / f'group-{replica}.sock'}"
                command = self._shard_command(self._config, replica, rank, address, rendezvous)
                environment = shard_environment(len(addresses) - 1, self._config.gpus)
                group.append(_Role(f"shard {replica}.{rank}", command, address, environment))
            self._groups.append(group)
        self._router.health = f"unix:{directory / 'health.sock'}"
        listen = f"unix:{directory / SOCKET}" if self._config.private_socket else self._config.listen
        self._router.command = self._router_command(self._config, addresses, listen, self._router.health)
        return addresses

    async def _wait_until_ready(self) -> str | None:
        """Waits until the router is ready, a child ends or a stop is asked for. Returns what failed, if anything."""
        assert self._router.child is not None
        ends = {asyncio.create_task(role.child.wait()): role for role in self._roles() if role.child is not None}
        stop = asyncio.create_task(self._stop.wait())
        awaited: list[asyncio.Future[Any]] = [self._router.child.address, stop, *ends]
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        ended = [(role, task.result()) for task, role in ends.items() if task.done()]
        for task in (stop, *ends):
            task.cancel()
        if self._stop.is_set() or not ended:
            return None
        return next(
            (role.child.error for role, _ in ended if role.child is not None and role.child.error),
            f"the {ended[0][0].name} ended with status {ended[0][1]} before it was ready",
        )

    async def _serve(self, addresses: Sequence[str]) -> None:
        """Keeps the children running until a stop is asked for."""
        assert self._router.child is not None
        address = self._router.child.address.result()
        http_address = self._router.child.http_address
        # A restarted router serves on the same addresses, also if port 0 was asked for.
        config = self._config
        if http_address is not None:
            config = replace(config, http_port=int(http_address.rpartition(":")[2]))
        self._router.command = self._router_command(config, addresses, address, self._router.health)
        print(f"pagewire ready on {address}", flush=True)
        if http_address is not None:
            print(f"pagewire http on {http_address}", flush=True)
            if sys.stdout.isatty():
                print(_what_http_is_for(config, http_address), flush=True)
        self._keepers = [asyncio.create_task(self._keep(group, self._spares)) for group in self._groups]
        self._keepers.append(asyncio.create_task(self._keep([self._router])))
        if self._spares is not None:
            self._keepers.append(asyncio.create_task(self._spares.keep(self._shard_children)))
        await self._stop.wait()

    async def _keep(self, roles: Sequence[_Role], spares: Spares | None = None) -> None:
        """Starts children again whenever one of them ends: a router, a shard, or the ranks of a group.

        spares: processes that may take the place of children.
        """
        loop = asyncio.get_running_loop()
        backoff_s = self._min_backoff_s
        what = "it" if len(roles) == 1 else "all ranks of its group"
        while True:
            started_s = loop.time()
            role, child, status = await self._first_end(roles)
            ran_s = loop.time() - started_s
            if ran_s > STABLE_S:
                backoff_s = self._min_backoff_s
            delay_s = 0.0 if ran_s > STEADY_S else backoff_s
            why = f" ({child.error})" if child.error else ""
            _log(f"the {role.name} ended with status {status}{why}; starting {what} again in {delay_s:g} s")
            await _kill_all(roles)
            await asyncio.sleep(delay_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            for role in roles:
                try:
                    await role.start(spares)
                except OSError as exc:  # out of processes or memory, which may pass
                    _log(f"cannot start the {role.name}: {exc}")

    async def _first_end(self, roles: Sequence[_Role]) -> tuple[_Role, Child, int]:
        """Waits until one of the children ends, and kills those that hang. Returns which ended, and its status."""
        watches = [asyncio.create_task(self._kill_if_hung(role)) for role in roles]
        ends = {asyncio.create_task(role.child.wait()): role for role in roles if role.child is not None}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*watches, *ends):
                task.cancel()
        end = next(task for task in ends if task in done)
        child = ends[end].child
        assert child is not None
        return ends[end], child, end.result()

    async def _kill_if_hung(self, role: _Role) -> None:
        """Probes a child from the time it is ready, since loading may take any time."""
        child = role.child
        assert child is not None
        await asyncio.shield(child.address)
        await wait_until_dead(role.health, self._probe)
        _log(f"the {role.name} hangs; killing it")
        child.kill()

    async def _shut_down(self) -> None:
        """Stops the router first, so that it drains and releases the shards, then the shards."""
        for keeper in self._keepers:
            keeper.cancel()
        if self._spares is not None:
            await self._spares.close()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._grace_s
        await _stop_all([self._router], self._grace_s + MARGIN_S)
        await _stop_all(self._shards(), max(deadline_s - loop.time(), min(self._grace_s, SHARD_GRACE_S)) + MARGIN_S)

    def _watch_for_stop(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal)
        if self._config.exit_with_parent:
            # A thread reads it, because an event loop cannot wait for standard input that is a file.
            threading.Thread(target=self._watch_parent, args=(loop,), daemon=True).start()

    def _watch_parent(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(OSError):  # reading fails if standard input is closed or revoked
            while os.read(STDIN, 4096):
                pass
        loop.call_soon_threadsafe(self._on_parent_gone)

    def _on_parent_gone(self) -> None:
        self._grace_s = min(self._grace_s, ORPHAN_GRACE_S)
        self._stop.set()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            for role in self._roles():
                if role.child is not None:
                    role.child.kill()
        self._stop.set()


async def _kill_all(roles: Sequence[_Role]) -> None:
    for role in roles:
        if role.child is not None:
            role.child.kill()
    await asyncio.gather(*(role.child.wait() for role in roles if role.child is not None))


async def _stop_all(roles: Sequence[_Role], timeout_s: float) -> None:
    await asyncio.gather(*(role.child.stop(timeout_s) for role in roles if role.child is not None))


def _what_http_is_for(config: ServeConfig, address: str) -> str:
    """A hint for whoever has started the server on a terminal."""
    url = f"{'http' if config.tls_cert is None else 'https'}://{address}"
    page = f"In a browser: {url}\n" if config.http_page else ""
    return f"{page}For OpenAI's clients: base URL {url}/v1; for Anthropic's: {url}"


def _log(message: str) -> None:
    tell(f"pagewire serve: {message}")
