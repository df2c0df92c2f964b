"""Real processes: shards and a router by their own command lines, or `pagewire serve` and what it starts.

What they print goes to files, whose ends are part of every failure. At the end each process is ended by its pid.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from pagewire.v1 import shard_pb2, shard_pb2_grpc

READY_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0
SPARE, SHARD = "pagewire-spare", "pagewire-shard"
"""Names of the processes of a spare that waits, and of one that has become a shard."""
READY = re.compile(r" ready on (\S+)")
HTTP = re.compile(r" http on (\S+)")


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    """Waits until the condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie counts as gone: it waits for its parent only."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_spare(process: psutil.Process) -> bool:
    """Until it has imported, a spare has its name on the command line alone."""
    return process.name() == SPARE or ("--spare" in process.cmdline() and process.name() != SHARD)


def free_port() -> int:
    """A port nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """One process of pagewire and its output."""

    def __init__(self, name: str, command: Sequence[str], directory: Path) -> None:
        self.name = name
        self._logs = [directory / f"{name}.{stream}" for stream in ("out", "err")]
        # Temporary files go where the test can see whether any is left.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(directory)}
        with self._logs[0].open("wb") as out, self._logs[1].open("wb") as err:
            # Nothing is ever written to its standard input: it ends with this process.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self._logs[0].read_text(errors="replace")

    @property
    def errors(self) -> str:
        return self._logs[1].read_text(errors="replace")

    def wait_ready(self) -> str:
        """The address it serves on."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not (match := READY.search(self.output)):
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}\n{self.log()}"
            assert time.monotonic() < deadline_s, f"{self.name} is not ready\n{self.log()}"
            time.sleep(0.02)
        return match[1]

    def http_address(self) -> str:
        """The address it serves HTTP on, once it is ready."""
        match = HTTP.search(self.output)
        assert match, self.log()
        return match[1]

    def log(self) -> str:
        return f"--- {self.name}, standard output\n{self.output[-4000:]}\n--- standard error\n{self.errors[-8000:]}"

    def children(self, module: str) -> list[int]:
        """Process ids of its descendants that run `python -m module`, those of spares that wait left out."""
        return [
            child.pid
            for child in psutil.Process(self.pid).children(recursive=True)
            if is_running(child.pid) and module in child.cmdline() and not _is_spare(child)
        ]

    def descendants(self) -> list[int]:
        """Process ids of all that it has started and that still run."""
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]

    def stop(self) -> int:
        """Ends it with SIGTERM, or SIGKILL if it does not end; returns its status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait()


@dataclass
class Cluster:
    """A router and its shards, each a process that the test may end."""

    address: str
    router: Service
    shards: list[Service]
    shard_addresses: list[str]
    metrics_ports: list[int]
    """Ports of the shards' metrics."""
    num_blocks: list[int] = field(default_factory=list)
    """Blocks in each shard's pool."""

    def free_blocks(self, shard: int = 0) -> int:
        """Returns the number of free blocks on the shard's metrics page."""
        return int(read_metrics(self.metrics_ports[shard])['pagewire_shard_free_blocks{cache_group="0"}'])

    def sampled_tokens(self, shard: int = 0) -> int:
        """All that the shard has sampled."""
        return int(read_metrics(self.metrics_ports[shard])["pagewire_shard_sampled_tokens_total"])

    def check_all_blocks_come_back(self) -> None:
        """Waits until every block of every shard is free."""
        for i, num_blocks in enumerate(self.num_blocks):
            eventually(
                lambda i=i, n=num_blocks: self.free_blocks(i) == n,  # type: ignore[misc]
                f"all {num_blocks} blocks of shard {i} free\n{self.log()}",
            )

    def log(self) -> str:
        return "\n".join(service.log() for service in (self.router, *self.shards))


@contextmanager
def shards_and_router(
    model: Path, *shard_flags: str, num_shards: int = 1, router_flags: Sequence[str] = ()
) -> Iterator[Cluster]:
    """num_shards replicas and a router, on Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="pw-") as name, ExitStack() as stack:
        directory = Path(name)
        addresses = [f"unix:{directory}/shard{i}.sock" for i in range(num_shards)]
        ports = [free_port() for _ in addresses]
        shards = []
        for i, (address, port) in enumerate(zip(addresses, ports, strict=True)):
            command = [
                *(sys.executable, "-m", "pagewire_shard", "--model", str(model), "--listen", address),
                *("--metrics-port", str(port), "--group-id", str(i), "--cpu-threads", "1", "--device", "cpu"),
                *("--exit-with-parent", *shard_flags),
            ]
            shards.append(Service(f"shard{i}", command, directory))
            stack.callback(shards[-1].stop)
        router = start_router("router", addresses, directory, *router_flags)
        stack.callback(router.stop)
        for shard in shards:
            shard.wait_ready()
        cluster = Cluster(router.wait_ready(), router, shards, addresses, ports)
        cluster.num_blocks = [num_blocks_of(address) for address in addresses]
        yield cluster


def start_router(name: str, shards: Sequence[str], directory: Path, *flags: str) -> Service:
    """A router on a Unix socket in the directory, not yet ready."""
    command = [
        *(sys.executable, "-m", "pagewire_router", "--shards", ",".join(shards)),
        *("--listen", f"unix:{directory}/{name}.sock", "--drain-grace", "1", "--exit-with-parent", *flags),
    ]
    return Service(name, command, directory)


@contextmanager
def serve(model: Path, *flags: str) -> Iterator[Service]:
    """`pagewire serve`, ready; afterwards nothing it started may be left."""
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        service = start_serve(model, Path(name), *flags)
        try:
            service.wait_ready()
            yield service
        finally:
            started = service.descendants() if service.process.poll() is None else []
            service.stop()
            left = [pid for pid in started if is_running(pid)]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, f"processes {left} outlived their supervisor\n{service.log()}"


def start_serve(model: Path | str, directory: Path, *flags: str) -> Service:
    """`pagewire serve` on a Unix socket in the directory, not yet ready."""
    command = [
        *(sys.executable, "-m", "pagewire", "serve", str(model), "--uds", f"{directory}/pagewire.sock"),
        *("--device", "cpu", "--cpu-threads", "1", "--drain-grace", "1", "--exit-with-parent", *flags),
    ]
    return Service("serve", command, directory)


def num_blocks_of(shard_address: str) -> int:
    """The size of a shard's pool."""
    with grpc.insecure_channel(shard_address) as channel:
        stub = shard_pb2_grpc.ShardStub(channel)
        return int(stub.GetInfo(shard_pb2.GetInfoRequest(), timeout=10).num_blocks[0])


def read_metrics(port: int) -> dict[str, float]:
    """The samples of a /metrics page on this machine, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=180) as response:
        lines = response.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, value in pairs}
