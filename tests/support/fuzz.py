"""Throws broken messages and broken connections at a real `pagewire serve`, and tells what others noticed of it.

`python tests/support/fuzz.py --messages 50000 --connections 2000` prints one line of JSON for each phase, and exits
with status 1 if a call ended as a fault of the server's, if a process died or logged a traceback, or if it serves no
more. The same seed draws the same messages. How long others waited is printed and not judged: it depends on the
machine.
"""

import argparse
import asyncio
import collections
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_connections
import fuzz_http_connections
import fuzz_messages
import grpc
import psutil
from cluster import Service, eventually, free_port, read_metrics

CALL_TIMEOUT_S = 20.0
NUM_AT_ONCE = 16
MAX_ROUTER_MB = 700
"""Most memory of a router after an attack; the chart gives it 1 GiB."""
WARM_UP_S = 1.5
"""Time until the probe has begun."""
TRACEBACK = "Traceback (most recent call last)"
FAULTS = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "CANCELLED", "UNIMPLEMENTED")
"""Statuses that no message may cause."""


@dataclass
class Report:
    """Results of one phase."""

    phase: str
    number: int = 0
    seconds: float = 0.0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    """Observations that must not occur."""
    probe: dict[str, object] = field(default_factory=dict)
    rss_mb: dict[str, list[int]] = field(default_factory=dict)
    """Memory of each process, before and after."""
    log_lines: int = 0

    def line(self) -> str:
        """The report as a line of JSON."""
        return json.dumps({**self.__dict__, "outcomes": dict(self.outcomes.most_common()), "faults": self.faults[:5]})


class Target:
    """`pagewire serve` on free ports of this machine."""

    def __init__(self, directory: Path) -> None:
        self.metrics_port, self.health_port, self.http_port = free_port(), free_port(), free_port()
        command = [
            *(
                sys.executable,
                "-m",
                "pagewire",
                "serve",
                "demo",
                "--port",
                "0",
                "--device",
                "cpu",
                "--cpu-threads",
                "1",
            ),
            *("--metrics-port", str(self.metrics_port), "--health-port", str(self.health_port), "--exit-with-parent"),
            *("--http-port", str(self.http_port)),
        ]
        self.service = Service("serve", command, directory)
        self.address = self.service.wait_ready()
        children = {name: self.service.children(f"pagewire_{name}") for name in ("router", "shard")}
        self.processes = {name: psutil.Process(pids[0]) for name, pids in children.items()}

    @property
    def ports(self) -> list[int]:
        """All that it listens on."""
        return [int(self.address.rpartition(":")[2]), self.metrics_port, self.health_port, self.http_port]

    def requests_alive(self) -> float:
        """Requests that the router runs or queues."""
        page = read_metrics(self.metrics_port)
        return page["pagewire_requests_running"] + page["pagewire_requests_queued"]

    def cache_usage(self) -> float:
        """Share of the KV cache that requests hold."""
        return read_metrics(self.metrics_port)["pagewire_kv_cache_usage_ratio"]

    def http_connections(self) -> float:
        """Connections over HTTP that are open."""
        return read_metrics(self.metrics_port)["pagewire_http_connections_open"]

    def rss_mb(self) -> dict[str, int]:
        """Memory of its processes."""
        return {name: process.memory_info().rss >> 20 for name, process in self.processes.items()}


def run(target: Target, phase: str, number: int, seed: int, attack: Callable[..., Awaitable[str]]) -> Report:
    """Attacks so often, and measures meanwhile."""
    report = Report(phase, number)
    before, num_lines = target.rss_mb(), target.service.errors.count("\n")
    probe_path = str(Path(__file__).with_name("fuzz_probe.py"))
    probe = subprocess.Popen(
        [sys.executable, probe_path, target.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    time.sleep(WARM_UP_S)
    began_s = time.monotonic()
    try:
        asyncio.run(_attack(target, report, seed, attack))
    finally:
        report.seconds = round(time.monotonic() - began_s, 1)
        output, _ = probe.communicate()
    report.probe = json.loads(output or "{}")
    report.log_lines = target.service.errors.count("\n") - num_lines
    _judge(target, report)
    if not report.faults:
        report.rss_mb = {name: [before[name], after] for name, after in target.rss_mb().items()}
    return report


async def _attack(target: Target, report: Report, seed: int, attack: Callable[..., Awaitable[str]]) -> None:
    numbers = iter(range(report.number))

    async def work() -> None:
        for number in numbers:
            outcome = await attack(target, random.Random(seed * 1_000_003 + number))
            report.outcomes[outcome] += 1
            if outcome.partition(" ")[2] in FAULTS:
                report.faults.append(f"{outcome} for number {number} of seed {seed}")

    await asyncio.gather(*(work() for _ in range(NUM_AT_ONCE)))


class Messages:
    """Sends messages; a Messages is an attack."""

    def __init__(self) -> None:
        self._channel: grpc.aio.Channel | None = None

    async def __call__(self, target: Target, rng: random.Random) -> str:
        """The method and the status with which the call ended."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(target.address, options=[("grpc.max_receive_message_length", -1)])
        method, data = fuzz_messages.make(rng)
        call = self._channel.unary_stream(f"/pagewire.v1.Inference/{method}")(data, timeout=CALL_TIMEOUT_S)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return f"{method} {error.code().name}"
        return f"{method} OK"


async def connections(target: Target, rng: random.Random) -> str:
    """Opens one garbage connection to one of the ports."""
    return await fuzz_connections.disturb(rng, rng.choice(target.ports))


async def http_connections(target: Target, rng: random.Random) -> str:
    """Opens one connection of a client that breaks to the HTTP port."""
    return await fuzz_http_connections.disturb(rng, target.http_port)


def _judge(target: Target, report: Report) -> None:
    """Faults but for statuses: dead processes, tracebacks, a server that serves no more."""
    report.faults += [f"the {name} has died" for name, process in target.processes.items() if not process.is_running()]
    tracebacks = target.service.errors.split(TRACEBACK)[1:]
    if tracebacks:
        report.faults.append(f"{len(tracebacks)} tracebacks in the log, the last one:{tracebacks[-1][-800:]}")
    try:
        eventually(lambda: target.requests_alive() == 0, "no request of a client that has gone")
        eventually(lambda: target.cache_usage() == 0, "the whole pool free")
        eventually(lambda: target.http_connections() == 0, "no HTTP connection of a client that has gone")
    except AssertionError as error:
        report.faults.append(str(error))
    rss_mb = target.rss_mb()["router"]
    if rss_mb > MAX_ROUTER_MB:
        report.faults.append(f"the router has grown to {rss_mb} MiB")
    try:
        with grpc.insecure_channel(target.address) as channel:
            request = fuzz_messages.inference_pb2.GenerateRequest(text="still alive").SerializeToString()
            channel.unary_unary("/pagewire.v1.Inference/Complete")(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        report.faults.append(f"a good request ends with {error}")


def fuzz(num_messages: int, num_connections: int, num_http: int, seed: int) -> list[Report]:
    """Runs all phases on one server."""
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        target = Target(Path(name))
        try:
            return [
                run(target, "messages", num_messages, seed, Messages()),
                run(target, "connections", num_connections, seed, connections),
                run(target, "HTTP connections", num_http, seed, http_connections),
            ]
        finally:
            target.service.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--http-connections", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    reports = fuzz(options.messages, options.connections, options.http_connections, options.seed)
    for report in reports:
        print(report.line())
    sys.exit(any(report.faults for report in reports))


if __name__ == "__main__":
    main()
