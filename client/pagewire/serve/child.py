"""One child process: starts it, reads its output, waits until it is ready, and stops it.

A child says `NAME ready on ADDRESS` on standard output when it serves, and before that `NAME http on ADDRESS` if it
serves HTTP too. One that cannot start says why in a line
`error: ...` on standard error. Its standard input is a pipe that nobody writes to, unless it is a spare (spares.py):
the end of it tells the child that its parent is gone, whatever ended the parent.
"""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Self

READY = " ready on "
HTTP = " http on "
SPARE = "pagewire-spare has imported"
ERROR = "error: "
KILLED_S = 5.0
"""How long to wait for the end of a killed child, which the kernel delays while it waits for a device."""
LAST_WORDS_S = 1.0
"""How long to wait for the rest of a dead child's output, since a process that it started may hold the pipe open. Only
for one that was not ready: its output says why."""


class Child:
    """A running child process."""

    def __init__(self, process: Process) -> None:
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """The address that the child serves on, once it has said so."""
        self.http_address: str | None = None
        """The address that the child serves HTTP on; None: it has not said any."""
        self.is_spare = False
        """Whether it has said that it waits to become a shard."""
        self.error: str | None = None
        """The child's error message, without "error: "; None: it gave none."""
        self._process = process
        self._readers = [asyncio.create_task(self._read_output()), asyncio.create_task(self._read_errors())]

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Starts the command in a process group of its own, so that Ctrl-C reaches the parent alone.

        environment: variables added to those of this process.
        """
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, process_group=0, env={**os.environ, **environment}
        )
        return cls(process)

    async def wait(self) -> int:
        """Waits until the child has ended, and if it never was ready, until its output is read; returns its status."""
        status = await self._process.wait()
        if not self.address.done():
            await asyncio.wait(self._readers, timeout=LAST_WORDS_S)
        return status

    @property
    def has_ended(self) -> bool:
        """Whether the child has ended, as far as is known."""
        return self._process.returncode is not None

    async def write_line(self, line: str) -> None:
        """Writes to the child's standard input. Raises OSError if it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def stop(self, timeout_s: float) -> None:
        """Asks the child to end; kills it if it has not ended after `timeout_s`."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            self.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), KILLED_S)

    def kill(self) -> None:
        """Kills the child."""
        if self._process.returncode is None:
            self._process.kill()

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            if READY in line and not self.address.done():
                self.address.set_result(line.partition(READY)[2].strip())
            elif line.strip() == SPARE:
                self.is_spare = True
            elif HTTP in line and not self.address.done():
                self.http_address = line.partition(HTTP)[2].strip()
            else:  # standard output belongs to the supervisor's own ready line
                tell(line)

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        async for line in _lines(self._process.stderr):
            if line.startswith(ERROR) and not self.address.done():
                self.error = line.removeprefix(ERROR)
            else:
                tell(line)


def tell(line: str) -> None:
    """Writes a line to standard error. A closed standard error is ignored: the supervisor must go on."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yields lines of any length; undecodable bytes are replaced."""
    rest = b""
    while chunk := await stream.read(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
