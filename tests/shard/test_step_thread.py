"""The step thread: pipelining on both kinds of device, signs of life, and what a broken step leaves behind."""

import asyncio
import logging
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pagewire.v1 import shard_pb2
from pagewire_shard.service.readiness import MAX_FAILED_IN_A_ROW
from pagewire_shard.stepping import step_loop
from pagewire_shard.stepping.step_thread import StepThread


class ListSink:
    """An epoch's messages, parsed."""

    def __init__(self) -> None:
        self.results: list[shard_pb2.StepResult] = []
        self.error: Exception | None = None

    def post(self, message: bytes, *, is_result: bool) -> None:
        parsed = shard_pb2.ShardMessage.FromString(message)
        if parsed.WhichOneof("message") == "result":
            self.results.append(parsed.result)

    def fail(self, error: Exception) -> None:
        self.error = error


@pytest.fixture
def start(fake_engine):
    """Starts step threads around fake engines, and joins them."""
    started = []

    def start_thread(engine):
        steps = StepThread(lambda: engine)
        steps.start()
        started.append((steps, engine))
        return steps

    yield start_thread
    for steps, engine in started:
        engine.may_launch.set()
        for step in engine.launched:
            step.done.set()
        steps.stop()
        assert steps.join(10)


def plan(step: int) -> shard_pb2.StepPlan:
    return shard_pb2.StepPlan(step=step, run_seq_ids=[1])


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def health(shard, service: str = "pagewire.v1.Shard") -> "health_pb2.HealthCheckResponse.ServingStatus.ValueType":
    stub = health_pb2_grpc.HealthStub(shard.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def until_health(shard, service: str, expected: int) -> None:
    async with asyncio.timeout(10):
        while await health(shard, service) != expected:
            await asyncio.sleep(0.01)


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_on_a_cpu_a_result_goes_up_before_the_next_plan_is_launched(start, fake_engine):
    engine, sink = fake_engine(), ListSink()
    engine.may_launch.clear()
    steps = start(engine)
    steps.begin_epoch(sink, 3)
    for step in (1, 2, 3):
        steps.submit(sink, plan(step))
    engine.may_launch.set()
    await until(lambda: len(sink.results) == 3)
    assert engine.log[1:] == ["launch 1", "collect 1", "launch 2", "collect 2", "launch 3", "collect 3"]


async def test_on_a_gpu_plans_are_launched_while_the_step_before_them_runs(start, fake_engine):
    engine, sink = fake_engine(on_gpu=True), ListSink()
    steps = start(engine)
    steps.begin_epoch(sink, 2)
    for step in (1, 2):
        steps.submit(sink, plan(step))
    await until(lambda: len(engine.launched) == 2)
    engine.launched[0].done.set()
    await until(lambda: len(sink.results) == 1)
    steps.submit(sink, plan(3))
    await until(lambda: len(engine.launched) == 3)
    for step in engine.launched:
        step.done.set()
    await until(lambda: len(sink.results) == 3)
    assert engine.log[1:] == ["launch 1", "launch 2", "collect 1", "launch 3", "collect 2", "collect 3"]


async def test_a_step_that_awaits_tokens_is_sampled_behind_the_results_of_the_steps_before_it(start, fake_engine):
    """Its forward pass is launched before that, and the results go up before its masks are filled."""
    engine, sink = fake_engine(on_gpu=True), ListSink()
    engine.awaiting = {2}
    steps = start(engine)
    steps.begin_epoch(sink, 2)
    for step in (1, 2):
        steps.submit(sink, plan(step))
    await until(lambda: len(engine.launched) == 2)
    assert engine.log[1:] == ["launch 1", "launch 2"]
    engine.launched[0].done.set()
    await until(lambda: "sample 2" in engine.log)
    assert len(sink.results) == 1
    engine.launched[1].done.set()
    await until(lambda: len(sink.results) == 2)
    assert engine.log[1:] == ["launch 1", "launch 2", "collect 1", "sample 2", "collect 2"]


async def test_a_plan_that_comes_while_a_gpu_step_runs_is_not_kept_waiting(start, fake_engine):
    engine, sink = fake_engine(on_gpu=True), ListSink()
    steps = start(engine)
    steps.begin_epoch(sink, 2)
    steps.submit(sink, plan(1))
    await until(lambda: len(engine.launched) == 1)
    await asyncio.sleep(0.01)
    steps.submit(sink, plan(2))
    await until(lambda: len(engine.launched) == 2)
    assert not sink.results


async def test_results_say_how_long_their_plans_waited(start, fake_engine):
    engine, sink = fake_engine(), ListSink()
    engine.may_launch.clear()
    steps = start(engine)
    steps.begin_epoch(sink, 2)
    for step in (1, 2):
        steps.submit(sink, plan(step))
    await asyncio.sleep(0.02)
    engine.may_launch.set()
    await until(lambda: len(sink.results) == 2)
    assert sink.results[1].timings.queue_us >= 20_000


async def test_an_idle_thread_sleeps(start, fake_engine, monkeypatch):
    monkeypatch.setattr(step_loop, "HEARTBEAT_INTERVAL_S", 60.0)
    engine, sink = fake_engine(), ListSink()
    steps = start(engine)
    steps.begin_epoch(sink, 2)
    steps.submit(sink, plan(1))
    await until(lambda: bool(sink.results))
    turns = []
    monkeypatch.setattr(step_loop.StepLoop, "_do_next", lambda self: turns.append(1))
    await asyncio.sleep(0.1)
    assert len(turns) <= 1


async def test_an_engine_that_cannot_be_built_says_why():
    def build():
        raise ValueError("no such device")

    steps = StepThread(build)
    steps.start()
    with pytest.raises(ValueError, match="no such device"):
        await asyncio.wrap_future(steps.ready)
    assert steps.join(10)


async def test_code_that_exits_while_the_engine_is_built_keeps_the_shard_from_starting():
    steps = StepThread(lambda: sys.exit("no table"))
    steps.start()
    with pytest.raises(RuntimeError, match="SystemExit: no table"):
        await asyncio.wrap_future(steps.ready)


async def test_code_that_exits_within_a_step_breaks_the_step_and_not_the_thread(start, fake_engine):
    engine, broken, sink = fake_engine(), ListSink(), ListSink()
    engine.bugs[1] = SystemExit(2)
    steps = start(engine)
    steps.begin_epoch(broken, 1)
    steps.submit(broken, plan(1))
    await until(lambda: broken.error is not None)
    assert "step 1 broke: SystemExit: 2" in str(broken.error)
    engine.bugs.clear()
    steps.begin_epoch(sink, 1)
    steps.submit(sink, plan(1))
    await until(lambda: sink.results)


async def test_heartbeats_stop_and_health_turns_while_a_step_hangs(serve_shard, monkeypatch):
    monkeypatch.setattr(step_loop, "HEARTBEAT_INTERVAL_S", 0.01)
    shard = await serve_shard(stall_timeout_s=0.2)
    router = shard.router()
    await router.hello()
    assert await health(shard) == SERVING
    await asyncio.sleep(0.4)
    assert await health(shard) == SERVING, "an idle shard is well"
    shard.engine.may_launch.clear()
    await router.plan(1)
    reading = asyncio.ensure_future(router.result())
    async with asyncio.timeout(10):
        while await health(shard) == SERVING:
            await asyncio.sleep(0.01)
    num_heartbeats = len(router.heartbeats)
    assert num_heartbeats > 1
    await asyncio.sleep(0.2)
    assert len(router.heartbeats) == num_heartbeats
    assert await health(shard, "") == NOT_SERVING
    assert await health(shard, "liveness") == NOT_SERVING, "only a new start helps"
    with pytest.raises(grpc.aio.AioRpcError, match="no progress") as ended:
        await reading
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE, "the router moves its requests"
    with pytest.raises(grpc.aio.AioRpcError, match="no progress") as refused:
        await shard.router().hello("another")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    shard.engine.may_launch.set()
    await until_health(shard, "pagewire.v1.Shard", SERVING)
    again = shard.router()
    await again.hello()
    await again.plan(1)
    await again.result()
    reading = asyncio.ensure_future(again.result())
    await shard.until(lambda: bool(again.heartbeats) and again.heartbeats[-1].last_step == 1)
    reading.cancel()


async def test_no_heartbeat_comes_while_a_device_that_runs_a_step_does_not_get_on(
    serve_shard, fake_engine, monkeypatch
):
    """The window has room, so that the thread does not wait within the step: it could well send heartbeats."""
    monkeypatch.setattr(step_loop, "HEARTBEAT_INTERVAL_S", 0.01)
    shard = await serve_shard(fake_engine(on_gpu=True), stall_timeout_s=0.3)
    router = shard.router()
    await router.hello(max_inflight=2)
    await router.plan(1)
    with pytest.raises(grpc.aio.AioRpcError, match="no progress"):
        await router.result()
    assert len(router.heartbeats) <= 5, "only until the launch"
    await until_health(shard, "liveness", NOT_SERVING)


async def test_a_long_step_that_gets_on_sends_heartbeats_and_is_no_stall(serve_shard, fake_engine, monkeypatch):
    class SlowEngine(fake_engine):
        def launch(self, plan):
            for _ in range(40):
                time.sleep(0.02)
                self.on_progress()
            return super().launch(plan)

    monkeypatch.setattr(step_loop, "HEARTBEAT_INTERVAL_S", 0.05)
    shard = await serve_shard(SlowEngine(), stall_timeout_s=0.4)
    router = shard.router()
    await router.hello()
    await router.plan(1)
    assert (await router.result()).step == 1
    assert len(router.heartbeats) >= 4


async def test_a_thread_that_hangs_while_idle_is_noticed_when_a_plan_comes(serve_shard, monkeypatch):
    shard = await serve_shard(stall_timeout_s=0.3)
    router = shard.router()
    await router.hello()
    may_go_on = threading.Event()
    monkeypatch.setattr(step_loop.StepLoop, "_patience_s", lambda self: may_go_on.wait(10) and None)
    await asyncio.sleep(1.2)  # until the next turn, which ends where it cannot take a command
    assert await health(shard, "liveness") == SERVING, "nothing waits"
    await router.plan(1)
    with pytest.raises(grpc.aio.AioRpcError, match="no progress"):
        await router.result()
    await until_health(shard, "liveness", NOT_SERVING)
    monkeypatch.undo()
    may_go_on.set()
    await until_health(shard, "liveness", SERVING)


async def test_a_broken_step_ends_the_epoch_once_and_the_shard_recovers(serve_shard, caplog):
    shard = await serve_shard(stall_timeout_s=0.4)
    shard.engine.bugs[2] = RuntimeError("device-side assert\nwith more lines")
    router = shard.router()
    await router.hello()
    with caplog.at_level(logging.ERROR):
        await router.plan(1, 2)
        assert (await router.result()).step == 1
        broken = await router.result()
    assert (broken.step, broken.error.code) == (2, grpc.StatusCode.INTERNAL.value[0])
    assert broken.error.message == "step 2 broke: RuntimeError: device-side assert"
    assert (await router.error()).code() == grpc.StatusCode.INTERNAL
    assert len(caplog.records) == 1
    await shard.until(lambda: shard.engine.log[-2:] == ["end", "reset cache"])
    async with asyncio.timeout(10):
        while await health(shard) == SERVING:
            await asyncio.sleep(0.01)
    assert await health(shard, "liveness") == SERVING, "the next step may work"
    shard.engine.bugs.clear()
    again = shard.router()
    await again.hello()
    await again.plan(1)
    assert (await again.result()).step == 1
    async with asyncio.timeout(10):
        while await health(shard) == NOT_SERVING:
            await asyncio.sleep(0.01)


async def test_an_epoch_that_cannot_begin_is_refused_and_the_next_may(serve_shard, monkeypatch):
    shard = await serve_shard()
    with monkeypatch.context() as broken:
        broken.setattr(shard.engine, "begin_epoch", lambda max_inflight: 1 / 0)
        with pytest.raises(grpc.aio.AioRpcError, match="ZeroDivisionError") as refused:
            await shard.router().hello()
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        await until_health(shard, "liveness", NOT_SERVING)
    await shard.router().hello()
    await until_health(shard, "liveness", SERVING)


async def test_a_shard_whose_every_step_fails_is_not_alive(serve_shard, caplog):
    shard = await serve_shard()
    for step in range(1, 4):
        shard.engine.bugs[step] = RuntimeError("device-side assert")
    for _ in range(MAX_FAILED_IN_A_ROW - 1):
        router = shard.router()
        await router.hello()
        await router.plan(1)
        assert (await router.result()).error.code == grpc.StatusCode.INTERNAL.value[0]
        await router.error()
    assert await health(shard, "liveness") == SERVING
    shard.engine.bugs.clear()
    router = shard.router()
    await router.hello()
    await router.plan(1)
    assert not (await router.result()).HasField("error")
    await shard.until(lambda: shard.steps.stats.num_failed_in_a_row == 0)  # The count begins anew.
    shard.engine.bugs[2] = shard.engine.bugs[1] = RuntimeError("device-side assert")
    await router.plan(2)
    await router.error()
    for _ in range(MAX_FAILED_IN_A_ROW - 1):
        router = shard.router()
        await router.hello()
        await router.plan(1)
        await router.error()
    await until_health(shard, "liveness", NOT_SERVING)
    assert sum("Traceback" in (record.exc_text or "") for record in caplog.records) == 2, "one for each run of failures"


async def test_gauges_are_true_after_an_epoch_that_ends_between_steps(serve_shard):
    shard = await serve_shard()
    router = shard.router()
    await router.hello()
    await router.plan(1)
    await router.result()
    await shard.until(lambda: shard.steps.stats.free_blocks == [9])
    router.call.cancel()
    await shard.until(lambda: shard.steps.stats.free_blocks == [10])
