"""The plaintext health port, as Kubernetes' probes use it: before shards are found, serving, draining."""

import asyncio
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pagewire_router.config import RouterConfig
from pagewire_router.server import RouterServer, ServerError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def probe(port, service):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        return (await stub.Check(request, wait_for_ready=True, timeout=10)).status


async def states(port):
    """Readiness under both names, and liveness."""
    return [await probe(port, name) for name in ("", "pagewire.v1.Inference", "liveness")]


async def until_states(port, expected):
    async with asyncio.timeout(30):
        while await states(port) != expected:
            await asyncio.sleep(0.02)


async def test_a_router_without_shards_is_alive_and_not_ready(new_engine):
    engine, found = new_engine(), asyncio.Event()
    engine.start = found.wait
    server = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0", health_port=0), engine)
    await server.start()
    opening = asyncio.create_task(server.open())
    try:
        assert await states(server.health_port) == [NOT_SERVING, NOT_SERVING, SERVING]
        found.set()
        await opening
        assert await states(server.health_port) == [SERVING, SERVING, SERVING]
        engine.is_ready = False
        await until_states(server.health_port, [NOT_SERVING, NOT_SERVING, SERVING])
    finally:
        await server.stop()


async def test_a_draining_router_is_alive_and_at_once_no_longer_ready(serve):
    async with serve(step_s=0.03, config={"health_port": 0}) as router:
        running = asyncio.create_task(router.generate(text="x"))
        while not router.engine.requests:
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(router.server.drain())
        while not router.engine.drained:
            await asyncio.sleep(0)
        assert await states(router.server.health_port) == [NOT_SERVING, NOT_SERVING, SERVING]
        await asyncio.gather(draining, running)


async def test_a_health_port_that_is_taken_is_named(new_engine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0", health_port=port), new_engine())
        with pytest.raises(ServerError, match=f"cannot serve health on 127.0.0.1:{port}"):
            await server.start()
        await server.stop()
