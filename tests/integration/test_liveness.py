"""Shards that hang, go for good or are taken by another router: who notices, and what becomes of the requests.

Routers and shards are in this process, where a step can be frozen while everything else goes on; they talk over gRPC.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from faulty_proxy import faulty_proxy
from live_shards import ask, check, live_router, live_shard
from pagewire.v1 import shard_pb2, shard_pb2_grpc
from pagewire_common.protocol import PROTOCOL_MAJOR
from pagewire_router.errors import Unavailable
from pagewire_router.groups import group_loop
from pagewire_router.groups.shard_client import LeaseHeld, ShardClient

STEP_TIMEOUT_S = 2.0


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s: {what}") from None


async def test_requests_of_a_shard_whose_step_hangs_move_to_another(tmp_path: Path) -> None:
    async with (
        live_shard(tmp_path, "a") as first,
        live_shard(tmp_path, "b") as second,
        live_router(first.address, second.address, step_timeout_s=STEP_TIMEOUT_S) as router,
    ):
        await router.wait_ready()
        asked = [ask(router, number) for number in range(6)]
        for _, answer in asked:
            await answer.begun()
        first.freeze()
        for request, answer in asked:
            check(request, await answer.end())
        assert router.is_ready, "the other one serves"
        assert second.runner.num_steps


async def test_a_router_whose_only_shard_hangs_is_not_ready_until_it_gets_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        live_shard(tmp_path) as shard,
        live_router(shard.address, step_timeout_s=STEP_TIMEOUT_S) as router,
    ):
        await router.wait_ready()
        request, answer = ask(router)
        await answer.begun()
        with caplog.at_level(logging.WARNING):
            shard.freeze()
            await until(lambda: not router.is_ready, "the router is not ready", 15)
            late_request, late_answer = ask(router, 1)
            await asyncio.sleep(6.0)
            assert not router.is_ready, "the shard answers, but no step runs"
            downs = [record for record in caplog.records if "is down" in record.message]
            assert len(downs) == 1, "attempts to come back are not news"
            assert "no progress" in downs[0].message
            shard.thaw()
            await until(lambda: router.is_ready, "the router is ready again", 15)
        check(request, await answer.end())
        check(late_request, await late_answer.end())
        assert "raise --step-timeout" in caplog.text, "it came back by itself: it was slow"


async def test_a_shard_tells_its_router_that_it_hangs(tmp_path: Path) -> None:
    """So that a router with more patience does not wait for longer than the shard itself would."""
    async with (
        live_shard(tmp_path, stall_timeout_s=1.0) as shard,
        live_router(shard.address, step_timeout_s=1000.0, shard_wait_s=3.0) as router,
    ):
        await router.wait_ready()
        _, answer = ask(router)
        await answer.begun()
        shard.freeze()
        await until(lambda: not router.is_ready, "the router is not ready", 15)
        await answer.end(15)
        assert isinstance(answer.error, Unavailable)
        assert answer.error.retry_after_s


async def test_a_thread_that_hangs_while_nothing_runs_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        live_shard(tmp_path) as shard,
        live_router(shard.address, step_timeout_s=STEP_TIMEOUT_S) as router,
    ):
        await router.wait_ready()
        await asyncio.sleep(2 * STEP_TIMEOUT_S)
        assert router.is_ready, "an idle shard is well"
        shard.freeze()
        monkeypatch.setattr(
            "pagewire_shard.stepping.step_loop.StepLoop._do_next", lambda self: shard.runner.may_run.wait()
        )
        await until(lambda: not router.is_ready, "the router is not ready", 15)


async def test_requests_do_not_wait_for_ever_for_a_shard_that_has_gone(tmp_path: Path) -> None:
    async with live_shard(tmp_path) as shard, live_router(shard.address, shard_wait_s=2.0) as router:
        await router.wait_ready()
        _, running = ask(router)
        await running.begun()
        await shard.die()
        await until(lambda: not router.is_ready, "the router is not ready", 15)
        _, waiting = ask(router, 1)
        for answer in (running, waiting):
            await answer.end(20)
            assert isinstance(answer.error, Unavailable)
            assert answer.error.retry_after_s
        with pytest.raises(Unavailable) as refused:
            ask(router, 2)
        assert refused.value.retry_after_s
        async with live_shard(tmp_path, address=shard.address):
            await until(lambda: router.is_ready, "the router is ready again", 15)
            request, answer = ask(router, 3)
            check(request, await answer.end())


async def test_requests_wait_for_a_shard_that_is_started_again(tmp_path: Path) -> None:
    async with live_shard(tmp_path) as shard, live_router(shard.address) as router:
        await router.wait_ready()
        request, answer = ask(router)
        await answer.begun()
        await shard.die()
        await asyncio.sleep(1.0)
        async with live_shard(tmp_path, address=shard.address):
            check(request, await answer.end())


async def test_streams_of_a_drained_shard_that_stays_away_are_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_loop, "DRAINED_WAIT_S", 1.0)
    async with live_shard(tmp_path) as shard, live_router(shard.address) as router:
        await router.wait_ready()
        _, answer = ask(router, num_tokens=500)
        await answer.begun()
        await shard.stop(grace_s=0.05)
        await answer.end(15)
        assert isinstance(answer.error, Unavailable)
        assert answer.error.retry_after_s


async def test_a_client_is_told_who_holds_the_lease(tmp_path: Path) -> None:
    async with live_shard(tmp_path) as shard:
        first, second = ShardClient(shard.address), ShardClient(shard.address)
        await first.open_plan_stream("first", 2, None)
        for _ in range(3):
            with pytest.raises(LeaseHeld) as refused:
                await second.open_plan_stream("second", 2, None)
            assert refused.value.holder == "first"
        await first.close()
        async with asyncio.timeout(15):
            while True:
                try:
                    await second.open_plan_stream("second", 2, None)
                    break
                except LeaseHeld:
                    await asyncio.sleep(0.05)
        await second.close()


async def test_a_router_that_was_cut_off_gives_up_what_another_one_has_taken(tmp_path: Path) -> None:
    async with live_shard(tmp_path, lease_term_s=1.0) as shard:
        async with (
            faulty_proxy(int(shard.address.rpartition(":")[2])) as network,
            live_router(network.address) as first,
        ):
            await first.wait_ready()
            _, running = ask(first, num_tokens=500)
            await running.begun()
            async with live_router(shard.address) as second:
                assert not second.is_ready, "the first one holds the lease"
                with pytest.raises(Unavailable):
                    ask(second)
                network.cut()
                await second.wait_ready()
                request, answer = ask(second, 1)
                network.mend()
                await running.end(20)
                assert isinstance(running.error, Unavailable)
                assert running.error.retry_after_s
                assert not first.is_ready
                with pytest.raises(Unavailable):
                    ask(first, 2)
                check(request, await answer.end())
            await until(lambda: first.is_ready, "the first router takes the shard again")
            request, answer = ask(first, 3)
            check(request, await answer.end())


async def test_streams_that_end_while_plans_are_written_are_no_bugs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shard is taken by force again and again, while the router is busy sending."""
    hello = shard_pb2.Hello(router_id="rogue", force=True, max_inflight=2, protocol_major=PROTOCOL_MAJOR)
    with caplog.at_level(logging.WARNING):
        async with live_shard(tmp_path) as shard, live_router(shard.address) as router:
            await router.wait_ready()
            asked = [ask(router, number, 400) for number in range(8)]
            async with grpc.aio.insecure_channel(shard.address) as channel:
                stub = shard_pb2_grpc.ShardStub(channel)
                for _ in range(15):
                    await until(lambda: router.is_ready, "the router drives the shard")
                    await asyncio.sleep(0.01)
                    call = stub.Execute()
                    await call.write(shard_pb2.RouterMessage(hello=hello))
                    await call.read()
                    call.cancel()
            for request, answer in asked:
                await answer.end()
                if answer.error is None:
                    check(request, answer)
                else:
                    assert isinstance(answer.error, Unavailable), "the rogue held the lease"
    # gRPC's poller serves all loops of the process, and may tell of a call of an earlier test, whose loop is closed.
    failures = [
        record for record in caplog.records if record.exc_info and "PollerCompletionQueue" not in record.message
    ]
    assert not failures, caplog.text


async def test_a_router_whose_loop_has_died_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live_shard(tmp_path) as shard, live_router(shard.address) as router:
        await router.wait_ready()
        monkeypatch.setattr(group_loop.GroupLoop, "_end_wait", lambda self: 1 / 0)
        await shard.die()
        with pytest.raises(Unavailable, match="start the router again"):
            async with asyncio.timeout(15):
                await router.wait_failed()
