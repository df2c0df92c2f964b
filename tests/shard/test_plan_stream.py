"""The plan stream over real gRPC: greeting, results, errors, the lease, and how streams end."""

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from pagewire.v1 import shard_pb2
from pagewire_common.protocol import PROTOCOL_MAJOR
from pagewire_shard.errors import PlanRefused
from pagewire_shard.service import plan_stream
from pagewire_shard.service.execute_service import LATE_TIMER_S, MAX_INFLIGHT_LIMIT, watch_lease
from pagewire_shard.service.lease import Lease


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo among a call's status details."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


async def test_welcome_comes_first_with_the_pool_and_the_cached_blocks(serve_shard, fake_engine, monkeypatch):
    monkeypatch.setattr(plan_stream, "SNAPSHOT_CHUNK_HASHES", 4)
    shard = await serve_shard(fake_engine(num_cached_hashes=10), lease_term_s=7.0)
    router = shard.router()
    welcome = await router.hello(max_inflight=3)
    assert welcome.epoch == shard_pb2.Epoch(incarnation=0x1234, counter=1)
    assert (welcome.max_inflight, welcome.lease_term_ms, list(welcome.free_blocks)) == (3, 7000, [10])
    assert welcome.info == shard.engine.info
    assert [list(s.hashes) for s in router.snapshots] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [s.last for s in router.snapshots] == [False, False, True]
    assert shard.engine.log == ["begin 3"]


async def test_an_empty_cache_still_has_a_last_snapshot(serve_shard, fake_engine):
    router = (await serve_shard(fake_engine(num_cached_hashes=0))).router()
    await router.hello()
    assert router.snapshots == [shard_pb2.CacheSnapshot(last=True)]


async def test_results_come_in_order_of_plans(serve_shard):
    shard = await serve_shard()
    router = shard.router()
    await router.hello(max_inflight=4)
    await router.plan(1, 2, 3, run_seq_ids=[3, 5])
    results = []
    for step in range(4, 54):
        await router.plan(step, run_seq_ids=[3, 5])
        results.append(await router.result())
    assert [r.step for r in results] == list(range(1, 51))
    assert all(list(r.sampled_token_ids) == [r.step, r.step] for r in results)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (shard_pb2.RouterMessage(plan=shard_pb2.StepPlan(step=1)), grpc.StatusCode.INVALID_ARGUMENT),
        (shard_pb2.RouterMessage(), grpc.StatusCode.INVALID_ARGUMENT),
        (
            shard_pb2.RouterMessage(
                hello=shard_pb2.Hello(protocol_major=PROTOCOL_MAJOR, max_inflight=MAX_INFLIGHT_LIMIT + 1)
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            shard_pb2.RouterMessage(hello=shard_pb2.Hello(protocol_major=PROTOCOL_MAJOR + 1, max_inflight=1)),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ],
    ids=["plan", "nothing", "window", "protocol"],
)
async def test_a_wrong_first_message_is_refused(serve_shard, first, code):
    shard = await serve_shard()
    router = shard.router()
    await router.call.write(first)
    assert (await router.error()).code() == code
    assert shard.engine.log == []


async def test_undecodable_bytes_are_refused(serve_shard):
    shard = await serve_shard()
    call = shard.channel.stream_stream("/pagewire.v1.Shard/Execute")()
    await call.write(b"\xff\xff\xff")
    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "RouterMessage" in await call.details()


async def test_a_live_lease_is_refused_with_holder_and_remaining_time(serve_shard):
    shard = await serve_shard(lease_term_s=60.0)
    await shard.router().hello("first")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await shard.router().hello("second")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "'first'" in refused.value.details()
    info = error_info(refused.value)
    assert (info.reason, info.metadata["holder"]) == ("LEASE_HELD", "first")
    assert 0 < int(info.metadata["remaining_ms"]) <= 60_000


async def test_force_takes_the_lease_and_ends_the_old_stream(serve_shard):
    shard = await serve_shard()
    first, second = shard.router(), shard.router()
    await first.hello("first")
    await first.plan(1)
    await first.result()
    welcome = await second.hello("second", force=True)
    assert welcome.epoch.counter == 2
    error = await first.error()
    assert error.code() == grpc.StatusCode.ABORTED
    assert "'second'" in error.details()
    await second.plan(1)
    assert (await second.result()).step == 1


async def test_takeover_waits_for_the_running_step_and_drops_what_waits(serve_shard, fake_engine):
    shard = await serve_shard(fake_engine())
    shard.engine.may_launch.clear()
    first, second = shard.router(), shard.router()
    await first.hello("first")
    await first.plan(1, 2)
    await shard.until(lambda: "launch 1" in shard.engine.log)
    welcome = asyncio.ensure_future(second.hello("second", force=True))
    assert (await first.error()).code() == grpc.StatusCode.ABORTED
    assert not welcome.done()
    shard.engine.may_launch.set()
    await welcome
    assert shard.engine.log == ["begin 2", "launch 1", "collect 1", "end", "begin 2"]


async def test_a_call_cancelled_while_its_epoch_begins_does_no_harm(serve_shard, fake_engine):
    shard = await serve_shard(fake_engine(on_gpu=True))
    first, second, third = shard.router(), shard.router(), shard.router()
    await first.hello(max_inflight=1)
    await first.plan(1)
    await shard.until(lambda: bool(shard.engine.launched))
    waiting = asyncio.ensure_future(second.hello(force=True))
    await first.error()
    second.call.cancel()
    await asyncio.wait([waiting])
    shard.engine.launched[0].done.set()
    await third.hello(force=True)
    assert shard.engine.log[-1] == "begin 2"


async def test_a_silent_router_loses_the_lease(serve_shard):
    shard = await serve_shard(lease_term_s=0.1)
    router = shard.router()
    await router.hello()
    error = await router.error()
    assert error.code() == grpc.StatusCode.ABORTED
    assert "lapsed" in error.details()
    await shard.router().hello("next")
    assert shard.engine.log[:3] == ["begin 2", "end", "begin 2"]


async def test_renewals_keep_the_lease(serve_shard):
    shard = await serve_shard(lease_term_s=1.0)
    router = shard.router()
    await router.hello()
    for _ in range(4):
        await asyncio.sleep(0.3)
        await router.send(renew_lease=shard_pb2.RenewLease(epoch=router.epoch))
    await router.plan(1)
    assert (await router.result()).step == 1


async def test_renewals_that_lie_unread_while_the_loop_stands_still_count():
    lease = Lease(incarnation=1, term_s=0.1, clock=time.monotonic)
    stream = plan_stream.PlanStream("r", lease.grant("r"))
    lease.renew(stream.epoch)
    watching = asyncio.ensure_future(watch_lease(lease, stream))
    await asyncio.sleep(0)
    time.sleep(LATE_TIMER_S + 0.3)
    await asyncio.sleep(0.05)  # The lease's timer has fired; only now are renewals read.
    assert not watching.done()
    lease.term_s = 60.0
    lease.renew(stream.epoch)
    await asyncio.sleep(LATE_TIMER_S + 0.1)
    assert not watching.done()
    watching.cancel()


async def test_a_plan_of_another_epoch_is_aborted(serve_shard):
    shard = await serve_shard()
    router = shard.router()
    await router.hello()
    router.epoch.counter += 1
    await router.plan(1)
    error = await router.error()
    assert error.code() == grpc.StatusCode.ABORTED
    assert error_info(error).reason == "STALE_EPOCH"
    assert "launch 1" not in shard.engine.log


async def test_a_refused_plan_has_a_result_and_ends_the_stream(serve_shard, fake_engine):
    shard = await serve_shard(fake_engine(on_gpu=True))
    shard.engine.refusals[2] = PlanRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of blocks")
    router = shard.router()
    await router.hello()
    await router.plan(1, 2)
    await shard.until(lambda: "launch 2" in shard.engine.log)
    shard.engine.launched[0].done.set()
    assert (await router.result()).step == 1
    refused = await router.result()
    assert (refused.step, refused.error.code, refused.error.message) == (2, 8, "out of blocks")
    assert (await router.error()).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await shard.until(lambda: shard.engine.log == ["begin 2", "launch 1", "launch 2", "collect 1", "end"])
    await shard.router().hello()


async def test_goodbye_frees_the_lease_at_once_and_ends_well(serve_shard):
    shard = await serve_shard(lease_term_s=60.0)
    router = shard.router()
    await router.hello()
    await router.send(goodbye=shard_pb2.Goodbye(reason="done"))
    assert (await router.error()).code() == grpc.StatusCode.OK
    await shard.router().hello("next")
    assert shard.engine.log == ["begin 2", "end", "begin 2"]


@pytest.mark.parametrize("way", ["cancel", "half-close"])
async def test_a_stream_that_breaks_frees_the_lease_and_drops_sequences(serve_shard, way):
    shard = await serve_shard(lease_term_s=60.0)
    router = shard.router()
    await router.hello()
    await router.plan(1)
    await router.result()
    if way == "cancel":
        router.call.cancel()
    else:
        await router.call.done_writing()
        assert (await router.error()).code() == grpc.StatusCode.ABORTED
    await shard.until(lambda: shard.engine.log[-1] == "end")
    await shard.router().hello("next")


async def test_draining_is_announced_and_waits_for_the_router(serve_shard):
    shard = await serve_shard()
    router = shard.router()
    await router.hello()
    stopping = asyncio.ensure_future(shard.server.stop(20.0))
    assert (await router.receive("draining")).draining.grace_ms == 20_000
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await shard.router().hello("late")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    await router.plan(1)
    assert (await router.result()).step == 1
    assert not stopping.done()
    await router.send(goodbye=shard_pb2.Goodbye())
    assert (await router.error()).code() == grpc.StatusCode.OK
    await stopping


async def test_a_router_that_does_not_let_go_is_cut_off_after_the_grace(serve_shard):
    shard = await serve_shard()
    router = shard.router()
    await router.hello()
    await shard.server.stop(0.05)
    assert (await router.error()).code() == grpc.StatusCode.UNAVAILABLE


async def test_plans_beyond_the_window_are_refused(serve_shard, fake_engine):
    shard = await serve_shard(fake_engine(on_gpu=True))
    router = shard.router()
    await router.hello()
    await router.plan(1, 2)
    await shard.until(lambda: len(shard.engine.launched) == 2)
    for step in shard.engine.launched:
        step.done.set()
    assert [(await router.result()).step for _ in range(2)] == [1, 2]
    await router.plan(3, 4)
    await shard.until(lambda: len(shard.engine.launched) == 4)
    await router.plan(5)
    error = await router.error()
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "max_inflight" in error.details()
    for step in shard.engine.launched:
        step.done.set()
    await shard.router().hello()
    assert "launch 5" not in shard.engine.log
