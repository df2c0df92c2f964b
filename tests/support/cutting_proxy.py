"""A TCP proxy that cuts each connection when enough has come back through it: each time twice as much."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CuttingProxy:
    """Runs on a thread of its own, for clients that are other processes."""

    def __init__(self, target: str, after_bytes: int) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._after_bytes = after_bytes
        self.address = ""
        self.num_cut = 0
        """Connections that were cut so far."""
        self._writers: set[asyncio.StreamWriter] = set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        other_reader, other_writer = await asyncio.open_connection(self._host, int(self._port))
        writers = {writer, other_writer}
        self._writers |= writers
        there = asyncio.create_task(self._pump(reader, other_writer, None))
        if await self._pump(other_reader, writer, self._after_bytes):
            self.num_cut += 1
            self._after_bytes *= 2
        self._writers -= writers
        for each in writers:
            each.transport.abort()
        await there

    def cut_all(self) -> None:
        """Ends all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: int | None) -> bool:
        """Passes bytes on until the connection ends or so many have passed. Returns whether it was cut."""
        try:
            while data := await source.read(1 << 16):
                sink.write(data if left is None else data[:left])
                await sink.drain()
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        return True
        except OSError:
            pass
        return False


@contextmanager
def cutting_proxy(target: str, *, after_bytes: int) -> Iterator[CuttingProxy]:
    """Listens on a free port of this machine, in front of HOST:PORT."""
    proxy = CuttingProxy(target, after_bytes)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(proxy.connect, "127.0.0.1", 0)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def end() -> None:
        server.close()
        proxy.cut_all()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks, timeout=10)

    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
