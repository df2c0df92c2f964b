"""Around the plan stream: HTTP pages, reflection, and the channel options."""

import asyncio
import logging
import socket

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pagewire_shard.errors import BadOption
from pagewire_shard.service.server import SERVER_OPTIONS


async def fetch(port: int, request: bytes) -> tuple[str, str]:
    """The status line and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return head.splitlines()[0] if head else "", body


@pytest.fixture
async def shard_and_port(serve_shard, caplog):
    with caplog.at_level(logging.INFO):
        shard = await serve_shard(metrics_port=0, stall_timeout_s=0.1)
    return shard, int(caplog.text.rpartition("/metrics")[0].rpartition(":")[2])


async def test_pages_for_kubernetes_follow_the_steps(shard_and_port):
    shard, port = shard_and_port
    assert await fetch(port, b"GET /healthz HTTP/1.1\r\n\r\n") == ("HTTP/1.1 200 OK", "alive\n")
    assert (await fetch(port, b"GET /readyz HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"
    router = shard.router()
    await router.hello()
    shard.engine.may_launch.clear()
    await router.plan(1)
    async with asyncio.timeout(10):
        while (await fetch(port, b"GET /readyz HTTP/1.1\r\n\r\n"))[0] != "HTTP/1.1 503 Service Unavailable":
            await asyncio.sleep(0.02)
    assert (await fetch(port, b"GET /healthz HTTP/1.1\r\n\r\n"))[1] == "not alive\n"


async def test_a_metrics_port_that_is_taken_is_named(serve_shard):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadOption, match=str(port)):
            await serve_shard(metrics_port=port)


async def test_two_shards_never_share_a_port(serve_shard):
    first = await serve_shard()
    with pytest.raises(BadOption, match="taken"):
        await serve_shard(listen=first.address)


async def test_a_unix_socket_is_served(serve_shard, tmp_path):
    shard = await serve_shard(listen=f"unix:{tmp_path}/s")
    assert shard.address == f"unix:{tmp_path}/s"
    await shard.router().hello()


async def test_reflection_lists_the_services(serve_shard):
    shard = await serve_shard()
    stub = reflection_pb2_grpc.ServerReflectionStub(shard.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {"pagewire.v1.Shard", "grpc.health.v1.Health"} <= names


async def test_channel_options_let_routers_ping_and_bound_messages(serve_shard):
    options = dict(SERVER_OPTIONS)
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.http2.max_ping_strikes"] == 0
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.ping_timeout_ms"] > 0
    assert 0 < options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] < 1 << 30
    shard = await serve_shard()
    pinging = [("grpc.keepalive_time_ms", 20), ("grpc.keepalive_permit_without_calls", 1)]
    pinging += [("grpc.http2.max_pings_without_data", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(shard.address, options=pinging) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        await asyncio.sleep(0.3)
        assert channel.get_state() == grpc.ChannelConnectivity.READY
