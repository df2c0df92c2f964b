"""A TCP proxy that passes bytes on, late, or only until a random number of them has come."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ChaosProxy:
    """In front of one port of this machine, in the caller's event loop."""

    def __init__(self, target_port: int, rng: random.Random) -> None:
        self._target_port = target_port
        self._rng = rng
        self._cut: tuple[int, int] | None = None
        self._delay: tuple[float, float] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.num_cut = 0

    def pass_on(self) -> None:
        """Mends everything."""
        self._cut = self._delay = None

    def cut(self, least: int, most: int) -> None:
        """Cuts all connections now, and each new one after a random number of bytes."""
        self._cut = (least, most)
        for writer in list(self._writers):
            writer.transport.abort()

    def delay(self, least_s: float, most_s: float) -> None:
        """Holds up each piece that comes for a random time."""
        self._delay = (least_s, most_s)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._tasks.discard(task)
        writers = {writer, other_writer}
        self._writers |= writers
        left = [self._rng.randint(*self._cut)] if self._cut else None
        pumps = {
            asyncio.create_task(self._pump(source, sink, left))
            for source, sink in ((reader, other_writer), (other_reader, writer))
        }
        self._tasks |= pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        self._tasks -= pumps
        self._writers -= writers
        for each in writers:
            each.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: list[int] | None) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if self._delay is not None:
                    await asyncio.sleep(self._rng.uniform(*self._delay))
                if left is not None and self._cut is not None:
                    left[0] -= len(data)
                    if left[0] <= 0:
                        sink.write(data[: len(data) + left[0]])
                        self.num_cut += 1
                        return
                sink.write(data)
                await sink.drain()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def chaos_proxy(target_port: int, rng: random.Random) -> AsyncIterator[ChaosProxy]:
    """Listens on a free port of this machine, in front of another one."""
    proxy = ChaosProxy(target_port, rng)
    server = await asyncio.start_server(proxy.connect, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
