"""Whatever hangs in a router or a shard, their probes say so within 5 s: each part is made to hang in real processes.

tests/router and tests/shard look at the same in one process, where the clock may be set.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import wedges
from cluster import Cluster, eventually, free_port, serve, shards_and_router
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_shards import ask, check, live_router, live_shard
from pagewire import Client, SamplingParams
from pagewire.retry import NEVER
from pagewire_common.health_state import HealthState
from pagewire_common.loop_watchdog import EXIT_STATUS

WITHIN_S = 8.0
"""What probes must have found out by. They find it out within 5 s on a machine that is not busy with other things."""
FLAGS = ("--block-size", "16", "--kv-cache-memory", "32MiB")


@dataclass
class Probes:
    """The addresses at which one process is probed."""

    health: int
    metrics: int
    http: str | None = None

    def failing(self) -> set[str]:
        """The probes that say no, or get no answer within a second."""
        pages = {"/readyz": f"http://127.0.0.1:{self.metrics}/readyz"}
        if self.http is not None:
            pages["/health"] = f"http://{self.http}/health"
        failing = {name for name, url in pages.items() if not page_is_ok(url)}
        return failing if self.is_serving() else {*failing, "grpc.health.v1"}

    def is_serving(self, service: str = "") -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{self.health}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            with contextlib.suppress(grpc.RpcError):
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    @property
    def all(self) -> set[str]:
        return {"grpc.health.v1", "/readyz"} | (set() if self.http is None else {"/health"})

    def until_all_fail(self, since_s: float) -> None:
        eventually(lambda: self.failing() == self.all, f"all of {self.all} fail; {self.failing()} do", WITHIN_S)
        print(f"noticed after {time.monotonic() - since_s:.1f} s")

    def readiness(self) -> str:
        """The text of /readyz."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/readyz", timeout=5) as response:
                return str(response.read().decode().strip())
        except urllib.error.HTTPError as error:
            return str(error.read().decode().strip())


def page_is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@dataclass
class Probed:
    """A router and its shard, and their probes."""

    cluster: Cluster
    router: Probes
    shard: Probes

    def ask_for(self, wedge: str) -> float:
        """Sends a request that makes a part of the shard hang; returns when."""
        params = SamplingParams(max_tokens=20, ignore_eos=True, extra_args={"wedge": wedge})
        self._send(lambda client: client.complete("Hello", params))
        return time.monotonic()

    def chat(self, text: str) -> float:
        self._send(lambda client: client.chat([{"role": "user", "content": text}], SamplingParams(max_tokens=2)))
        return time.monotonic()

    def _send(self, call) -> None:  # type: ignore[no-untyped-def]
        def run() -> None:
            with contextlib.suppress(Exception), Client(self.cluster.address, timeout_s=60, retry=NEVER) as client:
                call(client)

        threading.Thread(target=run, daemon=True).start()


@pytest.fixture
def probed(model: Path, tmp_path: Path) -> Iterator[Probed]:
    folder = shutil.copytree(model, tmp_path / "model")
    (template_file,) = [path for path in folder.iterdir() if "chat_template" in path.name]
    hang = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% if messages[0]['content'] == 'hang' %}" + hang + "{% endif %}" + template_file.read_text()
    template_file.write_text(template)
    health, router_health, router_metrics = free_port(), free_port(), free_port()
    processor = f"{Path(wedges.__file__)}:Wedge"
    shard_flags = (*FLAGS, "--health-port", str(health), "--logits-processors", processor)
    router_flags = ("--http-port", "0", "--health-port", str(router_health), "--metrics-port", str(router_metrics))
    with shards_and_router(folder, *shard_flags, router_flags=router_flags) as cluster:
        router = Probes(router_health, router_metrics, cluster.router.http_address())
        probed = Probed(cluster, router, Probes(health, cluster.metrics_ports[0]))
        assert router.failing() == probed.shard.failing() == set()
        assert router.readiness() == probed.shard.readiness() == "ready: idle"
        yield probed


@pytest.mark.slow
def test_a_router_whose_event_loop_hangs(probed: Probed) -> None:
    """By the model's own chat template, which does not end."""
    probed.router.until_all_fail(probed.chat("hang"))
    assert probed.shard.failing() == set()
    router = probed.cluster.router.process
    eventually(lambda: router.poll() is not None, "the router ends", 60)
    assert router.returncode == EXIT_STATUS


@pytest.mark.slow
def test_a_shard_whose_event_loop_hangs(probed: Probed) -> None:
    since_s = probed.ask_for("loop")
    probed.shard.until_all_fail(since_s)
    shard = probed.cluster.shards[0].process
    eventually(lambda: shard.poll() is not None, "the shard ends", 60)
    assert shard.returncode == EXIT_STATUS
    assert probed.router.failing() == probed.router.all


@pytest.mark.slow
def test_a_shard_whose_step_thread_hangs(probed: Probed) -> None:
    since_s = probed.ask_for("step")
    probed.shard.until_all_fail(since_s)
    probed.router.until_all_fail(since_s)
    assert probed.shard.readiness() == probed.router.readiness() == "not ready: stalled"
    assert probed.shard.is_serving("liveness"), "it may only be slow"
    assert probed.shard.is_serving("startup"), "it does not load"


@pytest.mark.slow
def test_a_shard_that_is_stopped_and_goes_on(probed: Probed) -> None:
    shard = probed.cluster.shards[0].pid
    os.kill(shard, signal.SIGSTOP)
    probed.router.until_all_fail(time.monotonic())
    os.kill(shard, signal.SIGCONT)
    eventually(lambda: not probed.router.failing(), "the router is ready again")


@pytest.mark.slow
def test_a_full_disk_keeps_nobody_from_serving(probed: Probed) -> None:
    """Nothing that serves is written to a disk; what cannot be logged is lost."""
    processes = (probed.cluster.router, probed.cluster.shards[0])
    for each in processes:
        resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (0, 0))
    with Client(probed.cluster.address, timeout_s=60) as client:
        for number in range(3):
            assert client.complete(f"Hello {number}", SamplingParams(max_tokens=20, ignore_eos=True)).outputs[0].text
        os.kill(probed.cluster.shards[0].pid, signal.SIGSTOP)
        probed.router.until_all_fail(time.monotonic())
        time.sleep(10)  # by now the router has given the shard up and tried to log that
        os.kill(probed.cluster.shards[0].pid, signal.SIGCONT)
        eventually(lambda: not probed.router.failing(), "the router is ready again")
        assert client.complete("Hello", SamplingParams(max_tokens=20, ignore_eos=True)).outputs[0].text
    assert probed.shard.failing() == set()


@pytest.mark.slow
def test_a_group_whose_ranks_wait_for_one_that_is_stopped(model: Path) -> None:
    metrics = free_port()
    with serve(model, *FLAGS, "--tensor-parallel-size", "2", "--metrics-port", str(metrics)) as server:
        url = f"http://127.0.0.1:{metrics}/readyz"
        eventually(lambda: page_is_ok(url), "the router is ready")
        ranks = server.children("pagewire_shard")
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGSTOP)
        eventually(lambda: not page_is_ok(url), "the router is not ready", WITHIN_S)
        eventually(lambda: page_is_ok(url), "the group was started again")


async def test_a_shard_without_room_for_anything_is_noticed_and_gets_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are missing though nothing runs, which only a defect can cause: a new epoch mends it."""
    monkeypatch.setattr("pagewire_router.groups.stall_watch.NOTICE_S", 0.3)
    async with live_shard(tmp_path) as shard, live_router(shard.address, step_timeout_s=0.8) as router:
        await router.wait_ready()
        assert router.state is HealthState.IDLE
        ledger = router.groups[0].scheduler._residents.ledger
        monkeypatch.setattr(ledger, "free", 0)
        request, answer = ask(router)
        seen = set()
        async with asyncio.timeout(30):
            while not answer.token_ids:
                seen.add(router.state)
                await asyncio.sleep(0.01)
        assert HealthState.STALLED in seen
        check(request, await answer.end())
        assert router.state is HealthState.IDLE


async def test_requests_that_wait_for_room_that_others_take_are_no_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagewire_router.groups.stall_watch.NOTICE_S", 0.6)
    async with live_shard(tmp_path) as shard, live_router(shard.address, step_timeout_s=2.0) as router:
        await router.wait_ready()
        asked = [ask(router, number, 150) for number in range(20)]
        states = set()
        while not all(answer.done.is_set() for _, answer in asked):
            states.add(router.state)
            await asyncio.sleep(0.01)
        for request, answer in asked:
            check(request, answer)
        assert states <= {HealthState.BUSY, HealthState.IDLE}
