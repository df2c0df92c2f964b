"""The plaintext health port, as Kubernetes' probes use it: while the model loads, serving, stalled, draining."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import eventually, free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from health_probe import NOT_SERVING, SERVING, probe, states, until_states
from pagewire.v1 import shard_pb2
from pagewire_shard.errors import BadOption
from pagewire_shard.service.server import ShardServer
from pagewire_shard.stepping.step_thread import StepThread

SERVICE = "pagewire.v1.Shard"


def local(port: int | None) -> str:
    return f"127.0.0.1:{port}"


async def test_a_shard_that_loads_is_alive_and_not_ready(config, fake_engine):
    steps = StepThread(fake_engine)  # not started: the engine is never built
    server = ShardServer(replace(config, health_port=0), Future(), steps)
    await server.start()
    try:
        assert await states(local(server.health_port), SERVICE) == [NOT_SERVING, NOT_SERVING, SERVING]
        assert await probe(local(server.health_port), "startup") == NOT_SERVING
    finally:
        await server.stop(0.0)


async def test_a_stalled_shard_is_neither_ready_nor_alive(serve_shard):
    shard = await serve_shard(health_port=0, stall_timeout_s=0.2)
    port = shard.server.health_port
    assert await states(local(port), SERVICE) == [SERVING, SERVING, SERVING]
    router = shard.router()
    await router.hello()
    shard.engine.may_launch.clear()
    await router.plan(1)
    await until_states(local(port), SERVICE, [NOT_SERVING, NOT_SERVING, NOT_SERVING])
    shard.engine.may_launch.set()
    await until_states(local(port), SERVICE, [SERVING, SERVING, SERVING])


async def test_a_shard_whose_router_does_not_read_is_not_ready(
    serve_shard: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagewire_shard.service.readiness.NOTICE_S", 0.5)
    shard = await serve_shard(health_port=0)
    port = shard.server.health_port
    router = shard.router()
    await router.hello()
    stream = shard.server._execute_service._stream
    for _ in range(20):
        stream.put(
            shard_pb2.ShardMessage(cache_snapshot={"hashes": range(1 << 63, (1 << 63) + 100_000)}).SerializeToString()
        )
    await until_states(local(port), SERVICE, [NOT_SERVING, NOT_SERVING, SERVING])
    assert await probe(local(port), "startup") == SERVING
    for _ in range(20):
        await router.receive("cache_snapshot")
    await until_states(local(port), SERVICE, [SERVING, SERVING, SERVING])


async def test_a_draining_shard_is_alive_and_at_once_no_longer_ready(serve_shard):
    shard = await serve_shard(health_port=0)
    router = shard.router()
    await router.hello()
    stopping = asyncio.create_task(shard.server.stop(30.0))
    await router.receive("draining")
    assert await states(local(shard.server.health_port), SERVICE) == [NOT_SERVING, NOT_SERVING, SERVING]
    await router.send(goodbye={"reason": "test"})
    await stopping


async def test_a_health_port_that_is_taken_is_named(serve_shard):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadOption, match=f"cannot serve health on 127.0.0.1:{port}"):
            await serve_shard(health_port=port)


def test_probes_are_answered_while_the_model_is_fetched(tmp_path: Path) -> None:
    """The hub here takes connections and never says a word."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_ETAG_TIMEOUT": "300",
        }
        command = [sys.executable, "-m", "pagewire_shard", "--model", "some/model", "--health-port", str(port)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    stub = health_pb2_grpc.HealthStub(channel)

                    def check(service: str) -> int:
                        request = health_pb2.HealthCheckRequest(service=service)
                        status: int = stub.Check(request, wait_for_ready=True, timeout=180).status
                        return status

                    assert check("liveness") == SERVING
                    hub.settimeout(60)
                    connection, _ = hub.accept()
                    with connection:
                        assert (check(""), check("liveness")) == (NOT_SERVING, SERVING)
                        process.terminate()
                        eventually(lambda: process.poll() is not None, "the shard ends though it still fetches")
                assert process.returncode == 0, process.stderr and process.stderr.read()
            finally:
                process.kill()
