"""Starts the services that benchmarks measure, and reads what they cost."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

BIN = os.path.dirname(sys.executable)
PAGEWIRE = os.path.join(BIN, "pagewire")
ROUTER = os.path.join(BIN, "pagewire-router")
SHARD = os.path.join(BIN, "pagewire-shard")
READY = re.compile(r" ready on (\S+)")
STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server process, with its children."""

    process: psutil.Process
    address: str
    time_to_ready_s: float
    """Seconds from the start of the process to its line "ready on"."""

    def processes(self) -> list[psutil.Process]:
        """Returns the server's process and its descendants."""
        return [self.process, *self.process.children(recursive=True)]

    def memory(self) -> list["ProcessMemory"]:
        """Returns the memory of each process."""
        return [ProcessMemory.of(process) for process in self.processes()]

    def cpu_s(self) -> float:
        """CPU seconds that all of them have used."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(time.user + time.system for time in times)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One process's memory."""

    name: str
    rss_bytes: int
    """Resident, shared pages counted in full."""
    pss_bytes: int
    """Resident, shared pages counted by their share: adds up over processes."""

    @classmethod
    def of(cls, process: psutil.Process) -> "ProcessMemory":
        """Reads the memory of a process."""
        full = process.memory_full_info()
        words = process.cmdline()
        name = next((word for word in words[1:] if "pagewire" in word), words[0] if words else process.name())
        return cls(os.path.basename(name), full.rss, full.pss)


@contextmanager
def start(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Runs a server until the context is left, then ends it with SIGTERM.

    Args:
        environment: variables added to those of this process.

    Raises:
        RuntimeError: it ended before it was ready.
    """
    began_s = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        match = next(filter(None, map(READY.search, process.stdout)), None)
        time_to_ready_s = time.perf_counter() - began_s
        if match is None:
            raise RuntimeError(f"{command[0]} ended with status {process.wait()} before it was ready")
        yield Server(psutil.Process(process.pid), match[1], time_to_ready_s)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve_command(model: str, *flags: str) -> list[str]:
    """`pagewire serve` on a free port, without metrics."""
    return [PAGEWIRE, "serve", model, "--port", "0", "--metrics-port", str(free_port()), *flags]


@contextmanager
def shard_and_router(
    model: str, *shard_flags: str, router_flags: Sequence[str] = ()
) -> Iterator[tuple[Server, Server, int]]:
    """Starts a shard and a router; yields both servers and the port of the shard's metrics."""
    metrics_port = free_port()
    shard_command = [SHARD, "--model", model, "--listen", "127.0.0.1:0", "--metrics-port", str(metrics_port)]
    with start([*shard_command, *shard_flags]) as shard:
        with start([ROUTER, "--shards", shard.address, "--listen", "127.0.0.1:0", *router_flags]) as router:
            yield shard, router, metrics_port


def read_metrics(port: int) -> dict[str, float]:
    """The samples without labels of a /metrics page on this machine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#") and "{" not in line]
    return {pair[0]: float(pair[1]) for pair in pairs}


def free_port() -> int:
    """A port nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
