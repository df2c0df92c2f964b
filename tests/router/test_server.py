"""Health, reflection, the HTTP endpoint, and the server's life."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pagewire.v1 import inference_pb2
from pagewire_router.config import RouterConfig
from pagewire_router.server import RouterServer, ServerError, channel_options

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(router, service):
    stub = health_pb2_grpc.HealthStub(router.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def until(condition):
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.02)


async def http(port, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode()


async def test_health_follows_the_engine(serve):
    async with serve() as router:
        for service in ("", "pagewire.v1.Inference"):
            assert await health_of(router, service) == SERVING
        router.runner.is_ready = False

        async def not_serving():
            return await health_of(router, "pagewire.v1.Inference") == NOT_SERVING

        await until(not_serving)
        assert await health_of(router, "") == NOT_SERVING


async def test_reflection_names_the_service(serve):
    async with serve() as router:
        stub = reflection_pb2_grpc.ServerReflectionStub(router.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for response in stub.ServerReflectionInfo(iter([request])):
            names = [service.name for service in response.list_services_response.service]
    assert "pagewire.v1.Inference" in names
    assert "grpc.health.v1.Health" in names


async def test_draining_lets_streams_finish_and_tells_probes(serve):
    async with serve(step_s=0.03, config={"metrics_port": 0}) as router:
        running = asyncio.create_task(router.generate(text="x"))
        while not router.runner.requests:
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(router.server.drain())
        await asyncio.sleep(0.01)
        assert await health_of(router, "") == NOT_SERVING
        assert (await http(router.server.metrics_port, b"GET /readyz HTTP/1.1\r\n\r\n"))[0] == 503
        assert (await http(router.server.metrics_port, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 200
        await draining
        assert (await running)[-1].HasField("finished")


async def test_pages_for_probes_follow_the_engine(serve):
    async with serve(config={"metrics_port": 0}) as router:
        port = router.server.metrics_port
        assert await http(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == (200, "alive\n")
        assert await http(port, b"GET /readyz HTTP/1.1\r\n\r\n") == (200, "ready: idle\n")
        router.runner.is_ready = False
        assert (await http(port, b"GET /readyz HTTP/1.1\r\n\r\n"))[0] == 503


async def test_a_taken_address_is_a_clear_error(serve, byte_level_files):
    async with serve(config={"metrics_port": 0}) as router:
        second = RouterServer(RouterConfig(shards=(), listen=router.address), router.runner)
        with pytest.raises(ServerError, match="cannot listen on"):
            await second.start()
        metrics = RouterServer(
            RouterConfig(shards=(), listen="127.0.0.1:0", metrics_port=router.server.metrics_port), router.runner
        )
        with pytest.raises(ServerError, match="cannot serve metrics on"):
            await metrics.start()


async def test_a_unix_socket_serves(serve, tmp_path):
    async with serve(config={"metrics_port": 0}) as router:
        server = RouterServer(RouterConfig(shards=(), listen=f"unix:{tmp_path}/router.sock"), router.runner)
        address = await server.start()
        await server.open()
        assert address == f"unix:{tmp_path}/router.sock"
        async with grpc.aio.insecure_channel(address) as channel:
            answer = channel.unary_unary("/pagewire.v1.Inference/GetModel")(b"")
            assert inference_pb2.Model.FromString(await answer).name == "tiny"
        await server.stop()


def test_channel_options_are_those_the_service_needs():
    options = dict(channel_options(RouterConfig(shards=())))
    assert options["grpc.max_receive_message_length"] == 16 * 1024 * 1024
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_concurrent_streams"] >= 10_000
    # Without a ping timeout a peer that hangs is noticed only after a minute.
    assert options["grpc.http2.ping_timeout_ms"] < 60_000
