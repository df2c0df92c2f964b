"""The plaintext health port, as Kubernetes' probes use it: before shards are found, serving, draining."""

import asyncio
import socket

import pytest
from health_probe import NOT_SERVING, SERVING, states, until_states
from pagewire_router.config import RouterConfig
from pagewire_router.server import RouterServer, ServerError

SERVICE = "pagewire.v1.Inference"


def local(port: int | None) -> str:
    return f"127.0.0.1:{port}"


async def test_a_router_without_shards_is_alive_and_not_ready(new_runner):
    runner, found = new_runner(), asyncio.Event()
    runner.start = found.wait
    server = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0", health_port=0), runner)
    await server.start()
    opening = asyncio.create_task(server.open())
    try:
        assert await states(local(server.health_port), SERVICE) == [NOT_SERVING, NOT_SERVING, SERVING]
        found.set()
        await opening
        assert await states(local(server.health_port), SERVICE) == [SERVING, SERVING, SERVING]
        runner.is_ready = False
        await until_states(local(server.health_port), SERVICE, [NOT_SERVING, NOT_SERVING, SERVING])
    finally:
        await server.stop()


async def test_a_draining_router_is_alive_and_at_once_no_longer_ready(serve):
    async with serve(step_s=0.03, config={"health_port": 0}) as router:
        running = asyncio.create_task(router.generate(text="x"))
        while not router.runner.requests:
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(router.server.drain())
        while not router.runner.drained:
            await asyncio.sleep(0)
        assert await states(local(router.server.health_port), SERVICE) == [NOT_SERVING, NOT_SERVING, SERVING]
        await asyncio.gather(draining, running)


async def test_a_health_port_that_is_taken_is_named(new_runner):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0", health_port=port), new_runner())
        with pytest.raises(ServerError, match=f"cannot serve health on 127.0.0.1:{port}"):
            await server.start()
        await server.stop()
