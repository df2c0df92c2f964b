"""The router's metrics of requests."""

import asyncio

import grpc
import pytest
from metrics_page import samples_of
from pagewire.v1 import inference_pb2
from pagewire_router.errors import Unavailable

PAGE = b"GET /metrics HTTP/1.1\r\n\r\n"


async def scrape(router) -> dict[tuple[str, ...], float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", router.server.metrics_port)
    writer.write(PAGE)
    answer = await reader.read()
    writer.close()
    return samples_of(answer.partition(b"\r\n\r\n")[2].decode())


def prompt(num_tokens: int, **params) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=[5] * num_tokens),
        sampling_params=inference_pb2.SamplingParams(seed=1, **params),
    )


async def cancelled(router) -> None:
    call = router.stub.Generate(inference_pb2.GenerateRequest(text="x"))
    await call.read()
    call.cancel()
    async with asyncio.timeout(10):
        while not router.runner.aborted:
            await asyncio.sleep(0.01)


async def test_calls_are_counted_by_method_and_status(serve):
    async with serve(step_s=0.002, config={"metrics_port": 0}) as router:
        before = await scrape(router)
        await router.stub.Complete(prompt(1))
        with pytest.raises(grpc.aio.AioRpcError):
            await router.generate()
        await cancelled(router)
        await router.stub.GetModel(inference_pb2.GetModelRequest())
        samples = await scrape(router)
    # Every series is there before its first event, so that no increase is missed.
    assert before["pagewire_requests_total", "Generate", "RESOURCE_EXHAUSTED"] == 0
    assert samples["pagewire_requests_total", "Complete", "OK"] == 1
    assert samples["pagewire_requests_total", "Generate", "INVALID_ARGUMENT"] == 1
    assert samples["pagewire_requests_total", "Generate", "CANCELLED"] == 1
    assert samples["pagewire_requests_total", "GetModel", "OK"] == 1
    assert samples["pagewire_requests_total", "Generate", "OK"] == 0


async def test_a_call_that_its_deadline_ended_is_not_taken_for_cancelled(serve):
    async with serve(step_s=60, config={"metrics_port": 0}) as router:
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in router.stub.Generate(prompt(3), timeout=0.5):
                pass
        async with asyncio.timeout(10):
            while (samples := await scrape(router))["pagewire_requests_open",]:
                await asyncio.sleep(0.01)
    assert samples["pagewire_requests_total", "Generate", "DEADLINE_EXCEEDED"] == 1
    assert samples["pagewire_requests_total", "Generate", "CANCELLED"] == 0


async def test_times_and_sizes_of_requests_are_observed_once_for_each(serve):
    async with serve(step_s=0.002, config={"metrics_port": 0}) as router:
        async for _ in router.stub.Generate(prompt(7, n=2, max_tokens=10)):
            pass
        await router.stub.Complete(prompt(1, max_tokens=3))
        samples = await scrape(router)
    for name in ("time_to_first_token", "request_latency", "admission_time", "decode_time"):
        assert samples[f"pagewire_{name}_seconds_count",] == 2, name
        assert samples[f"pagewire_{name}_seconds_bucket", "+Inf"] == 2, name
    # All tokens but those of the first message, which may carry one or both sequences' first.
    assert 18 <= samples["pagewire_inter_token_latency_seconds_count",] <= 19
    assert samples["pagewire_request_prompt_tokens_sum",] == 8
    assert samples["pagewire_request_generation_tokens_sum",] == 23
    assert samples["pagewire_requests_open",] == 0
    assert samples["pagewire_sequences_finished_total", "length"] == 3


async def test_requests_that_never_started_count_in_the_queue_time(serve):
    async with serve(script=lambda r: list(range(40, 50)), step_s=60, config={"metrics_port": 0}) as router:
        call = router.stub.Generate(prompt(3))
        await call.read()
        assert (await scrape(router))["pagewire_requests_open",] == 1
        call.cancel()
        async with asyncio.timeout(10):
            while (samples := await scrape(router))["pagewire_requests_open",]:
                await asyncio.sleep(0.01)
    assert samples["pagewire_queue_time_seconds_count",] == 1
    assert samples["pagewire_time_to_first_token_seconds_count",] == 0
    assert samples["pagewire_sequences_finished_total", "abort"] == 1


async def test_requests_that_fail_are_not_taken_for_aborted(serve):
    async with serve(step_s=60, config={"metrics_port": 0}) as router:
        call = router.stub.Generate(prompt(3))
        await call.read()
        router.runner.requests[0].sink.on_failed(Unavailable("the shards are gone"))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        samples = await scrape(router)
    assert samples["pagewire_sequences_finished_total", "error"] == 1
    assert samples["pagewire_requests_total", "Generate", "UNAVAILABLE"] == 1


async def test_the_state_of_the_router_is_shown(serve):
    async with serve(config={"metrics_port": 0, "max_queued_requests": 7}) as router:
        samples = await scrape(router)
        assert samples["pagewire_ready",] == 1
        assert samples["pagewire_draining",] == 0
        assert samples["pagewire_max_queued_requests",] == 7
        await router.server.drain()
        samples = await scrape(router)
        assert samples["pagewire_ready",] == 0
        assert samples["pagewire_draining",] == 1


async def test_the_pacing_of_messages_is_shown(serve):
    async with serve(step_s=0.015, config={"metrics_port": 0}) as router:
        idle = await scrape(router)
        calls = [router.stub.Generate(prompt(1, max_tokens=200)) for _ in range(32)]
        streaming = idle
        async with asyncio.timeout(20):
            while streaming["pagewire_streams_open",] < 32 or not streaming["pagewire_message_cost_seconds",]:
                await asyncio.sleep(0.05)
                streaming = await scrape(router)
        answers = [[response async for response in call] for call in calls]
        after = await scrape(router)
    assert idle["pagewire_streams_open",] == idle["pagewire_stream_interval_seconds",] == 0
    assert 0 < streaming["pagewire_stream_interval_seconds",] <= 0.05
    assert streaming["pagewire_event_loop_busy_ratio",] > 0
    assert 0 < streaming["pagewire_event_loop_served_ratio",] <= 1
    assert after["pagewire_streams_open",] == 0
    for answer in answers:
        token_ids = [token_id for response in answer for token_id in response.delta.token_ids]
        assert token_ids == list(range(40, 240))


async def test_the_event_loop_is_watched(serve):
    async with serve(config={"metrics_port": 0}) as router, asyncio.timeout(10):
        while not (await scrape(router))["pagewire_event_loop_lag_seconds_count",]:
            await asyncio.sleep(0.05)
