"""Messages being received: unread until the caller is known, bounded in number, and slow ones given up for others."""

import asyncio
import struct

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from http2_frames import RawCall
from pagewire.v1 import inference_pb2
from pagewire_router.grpc_front import reception

GENERATE = "/pagewire.v1.Inference/Generate"
LARGE = struct.pack(">BI", 0, 12_000_000) + b"z" * 11_000_000
"""Most of a message, which never ends."""


def rss_bytes():
    return psutil.Process().memory_info().rss


async def test_a_message_without_a_key_is_not_received(serve, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-key")
    async with serve(config={"api_keys": str(keys)}) as router:
        before = rss_bytes()
        calls = [await RawCall.open(router.address, GENERATE) for _ in range(24)]
        sent = await asyncio.gather(*(call.send(LARGE, patience_s=1.0) for call in calls))
        assert max(sent) < len(LARGE)
        assert rss_bytes() - before < 64 << 20
        for call in calls:
            assert "16" in (await call.status()), "UNAUTHENTICATED"
            call.close()


async def test_a_message_is_received_as_it_comes(serve):
    message = inference_pb2.GenerateRequest(text="x").SerializeToString()
    async with serve() as router:
        call = await RawCall.open(router.address, GENERATE)
        data = struct.pack(">BI", 0, len(message)) + message
        await call.send(data[:6])
        await asyncio.sleep(0.1)
        assert not router.runner.requests
        await call.send(data[6:], is_last=True)
        assert "0" in await call.status()
        call.close()


async def test_slow_messages_make_room_for_others(serve, monkeypatch):
    monkeypatch.setattr(reception, "MAX_RECEIVING_BYTES", 0)
    monkeypatch.setattr(reception, "PATIENCE_S", 0.2)
    monkeypatch.setattr(reception, "LOOK_AGAIN_S", 0.05)
    async with serve() as router:
        calls = [await RawCall.open(router.address, GENERATE) for _ in range(3 * reception.MIN_MESSAGES)]
        await asyncio.gather(*(call.send(LARGE[:1000]) for call in calls))
        await asyncio.sleep(0.5)
        async with asyncio.timeout(20):
            assert await router.generate(text="one that is whole")
        # Which of them were read first, and so given up, is up to the server.
        ends = asyncio.as_completed([call.status() for call in calls])
        statuses = [await next(ends) for _ in range(reception.MIN_MESSAGES)]
        assert all("8" in status for status in statuses), "RESOURCE_EXHAUSTED"
        page = router.server._metrics.render().decode()
        line = next(line for line in page.splitlines() if 'method="Generate",status="RESOURCE_EXHAUSTED"' in line)
        assert float(line.rpartition(" ")[2]) >= reception.MIN_MESSAGES
        for call in calls:
            call.close()
        async with asyncio.timeout(20):
            assert await router.generate(text="and another")


async def test_a_slow_message_has_time_while_nobody_waits(serve, monkeypatch):
    monkeypatch.setattr(reception, "PATIENCE_S", 0.05)
    monkeypatch.setattr(reception, "LOOK_AGAIN_S", 0.05)
    message = inference_pb2.GenerateRequest(text="x").SerializeToString()
    async with serve() as router:
        call = await RawCall.open(router.address, GENERATE)
        data = struct.pack(">BI", 0, len(message)) + message
        await call.send(data[:6])
        await asyncio.sleep(0.5)
        assert await router.generate(text="y")
        await call.send(data[6:], is_last=True)
        assert "0" in await call.status()
        call.close()


async def test_more_calls_than_may_wait_to_be_received_are_refused(serve, monkeypatch):
    monkeypatch.setattr(reception, "MAX_RECEIVING_BYTES", 0)
    monkeypatch.setattr(reception, "MAX_WAITING", 0)
    async with serve() as router:
        calls = [await RawCall.open(router.address, GENERATE) for _ in range(reception.MIN_MESSAGES)]
        await asyncio.gather(*(call.send(LARGE[:1000]) for call in calls))
        await asyncio.sleep(0.3)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await router.generate(text="x")
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        kinds = [detail.type_url.rpartition(".")[2] for detail in rpc_status.from_call(refused.value).details]
        assert error_details_pb2.RetryInfo.DESCRIPTOR.name in kinds
        for call in calls:
            call.close()


@pytest.mark.parametrize("method", ["Generate", "Complete", "GetModel"])
async def test_a_call_without_a_message_is_refused(serve, method):
    async with serve() as router:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await router.channel.stream_unary(f"/pagewire.v1.Inference/{method}")(iter([]))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert await router.generate(text="still alive")


@pytest.mark.parametrize("sent", [LARGE[:3], LARGE[:1000], b""], ids=["length", "part", "nothing"])
async def test_a_message_that_is_still_coming_does_not_hold_up_the_stop(serve, sent):
    async with serve(config={"drain_grace_s": 60.0}) as router:
        call = await RawCall.open(router.address, GENERATE)
        await call.send(sent)
        await asyncio.sleep(0.2)
        async with asyncio.timeout(20):
            await router.server.drain()
            await router.server.stop()
        assert "14" in await call.status(), "UNAVAILABLE"
        call.close()
