"""A cluster whose every process and connection can be broken, and the faults that are tried on it."""

import asyncio
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chaos_load import Answer, Load, Row, Spec
from chaos_proxy import ChaosProxy, chaos_proxy
from cluster import Service, free_port


@dataclass
class Place:
    """Where one process runs, and a new one when that is gone."""

    name: str
    command: Sequence[str]
    directory: Path
    address: str
    """Where it listens, for others: its proxy's."""
    proxy: ChaosProxy
    service: Service = field(init=False)
    num_starts: int = 0

    def start(self) -> None:
        self.num_starts += 1
        self.service = Service(f"{self.name}-{self.num_starts}", self.command, self.directory)

    async def ready(self) -> None:
        await asyncio.to_thread(self.service.wait_ready)

    def send(self, number: signal.Signals) -> None:
        self.service.process.send_signal(number)

    async def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends the process, and starts another when it is gone."""
        self.send(number)
        await asyncio.to_thread(self.service.process.wait, 120)
        self.start()


@dataclass
class Chaos:
    """Two shard groups and two routers, each behind a proxy."""

    shards: list[Place]
    routers: list[Place]
    rng: random.Random

    @property
    def targets(self) -> list[str]:
        return [router.address for router in self.routers]

    async def heal(self) -> None:
        """All processes run, and all connections are whole."""
        for place in (*self.shards, *self.routers):
            place.proxy.pass_on()
            if place.service.process.poll() is None:
                place.send(signal.SIGCONT)
            else:
                place.start()
        await asyncio.gather(*(place.ready() for place in (*self.shards, *self.routers)))

    def log(self) -> str:
        return "\n".join(place.service.log() for place in (*self.routers, *self.shards))


@asynccontextmanager
async def chaos_cluster(
    model: str | Path = "demo", *, num_shards: int = 2, num_routers: int = 2, shard_flags: Sequence[str] = ()
) -> AsyncIterator[Chaos]:
    """Starts everything, ready."""
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        async with AsyncExitStack() as stack:
            directory, rng = Path(name), random.Random(1)

            async def place(name: str, command: list[str], port: int) -> Place:
                proxy = await stack.enter_async_context(chaos_proxy(port, rng))
                return Place(name, command, directory, proxy.address, proxy)

            shards = []
            for i in range(num_shards):
                port = free_port()
                command = [*(sys.executable, "-m", "pagewire_shard", "--model", str(model)), "--exit-with-parent"]
                command += ["--listen", f"127.0.0.1:{port}", "--group-id", str(i), "--device", "cpu"]
                command += ["--cpu-threads", "1", "--kv-cache-memory", "64MiB", *shard_flags]
                shards.append(await place(f"shard{i}", command, port))
            routers = []
            for i in range(num_routers):
                port = free_port()
                addresses = ",".join(shard.address for shard in shards)
                command = [*(sys.executable, "-m", "pagewire_router", "--shards", addresses), "--exit-with-parent"]
                command += ["--listen", f"127.0.0.1:{port}"]
                routers.append(await place(f"router{i}", command, port))
            chaos = Chaos(shards, routers, rng)
            for each in (*shards, *routers):
                each.start()
                stack.callback(lambda each=each: each.service.stop())  # type: ignore[misc]
            # With one group a second router stands by, and is never ready.
            await asyncio.gather(*(each.ready() for each in shards))
            await routers[0].ready()
            yield chaos


Fault = Callable[[Chaos], Awaitable[None]]


async def nothing(chaos: Chaos) -> None:
    """To compare with."""


async def kill_shard(chaos: Chaos) -> None:
    await chaos.shards[0].restart()
    await chaos.shards[0].ready()


async def stop_shard(chaos: Chaos) -> None:
    chaos.shards[0].send(signal.SIGSTOP)
    await asyncio.sleep(10)
    chaos.shards[0].send(signal.SIGCONT)


async def cut_shard(chaos: Chaos) -> None:
    chaos.shards[0].proxy.cut(1_000, 40_000)
    await asyncio.sleep(6)
    chaos.shards[0].proxy.pass_on()


async def delay_shard(chaos: Chaos) -> None:
    chaos.shards[0].proxy.delay(0.05, 0.5)
    await asyncio.sleep(6)
    chaos.shards[0].proxy.pass_on()


async def kill_router(chaos: Chaos) -> None:
    await chaos.routers[0].restart()
    await chaos.routers[0].ready()


async def stop_router(chaos: Chaos) -> None:
    chaos.routers[0].send(signal.SIGSTOP)
    await asyncio.sleep(15)
    chaos.routers[0].send(signal.SIGCONT)


async def cut_clients(chaos: Chaos) -> None:
    for router in chaos.routers:
        router.proxy.cut(1_000, 40_000)
    await asyncio.sleep(6)
    for router in chaos.routers:
        router.proxy.pass_on()


async def kill_router_and_shard(chaos: Chaos) -> None:
    await asyncio.gather(chaos.routers[0].restart(), chaos.shards[0].restart())
    await asyncio.gather(chaos.routers[0].ready(), chaos.shards[0].ready())


async def kill_five(chaos: Chaos) -> None:
    """Of either kind, at random."""
    for _ in range(5):
        await chaos.rng.choice([*chaos.shards, *chaos.routers]).restart()
        await asyncio.sleep(2)


async def restart_all_in_turn(chaos: Chaos) -> None:
    for place in (*chaos.routers, *chaos.shards):
        await place.restart(signal.SIGTERM)
        await place.ready()
        await asyncio.sleep(2)


async def contend(chaos: Chaos) -> None:
    """One router and then the other stands still for longer than the lease lasts: each takes what the other had."""
    for router in (*chaos.routers, *chaos.routers):
        router.send(signal.SIGSTOP)
        await asyncio.sleep(4.5)
        router.send(signal.SIGCONT)
        await asyncio.sleep(1.5)


FAULTS: dict[str, Fault] = {
    "none": nothing,
    "shard killed": kill_shard,
    "shard stopped for 10 s": stop_shard,
    "shard's connections cut at random bytes for 6 s": cut_shard,
    "shard's messages delayed by 50 to 500 ms for 6 s": delay_shard,
    "router killed": kill_router,
    "router stopped for 15 s": stop_router,
    "clients' connections cut at random bytes for 6 s": cut_clients,
    "router and shard killed": kill_router_and_shard,
    "five kills in 10 s": kill_five,
    "rolling restart of every process": restart_all_in_turn,
    "two routers contend": contend,
}


async def try_fault(
    chaos: Chaos, name: str, fault: Fault, asked: list[Spec], expected: list[Answer], num_requests: int
) -> Row:
    """Runs the load, and the fault when all streams have begun: again and again if many requests are wanted."""
    load = Load(chaos.targets, asked, expected)
    running = asyncio.create_task(load.run(num_requests))
    await asyncio.sleep(0)
    await load.all_begun()
    num_disturbed = load.begin_fault()
    while True:
        await fault(chaos)
        await chaos.heal()
        if load.num_left <= 0:
            break
    load.end_faults()
    await running
    return load.row(name, num_disturbed)
