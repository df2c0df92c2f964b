"""The shard's metrics of steps, blocks and the lease."""

import asyncio
import logging

import pytest
from metrics_page import samples_of
from pagewire.v1 import shard_pb2
from pagewire_shard.service.metrics import ShardMetrics
from pagewire_shard.stepping.step_stats import StepStats


class Shard:
    def __init__(self, shard, port: int) -> None:
        self.shard, self.port = shard, port

    async def scrape(self) -> dict[tuple[str, ...], float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics?x=y HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        return samples_of(answer.partition("\r\n\r\n")[2])

    async def scrape_until(self, condition) -> dict[tuple[str, ...], float]:
        async with asyncio.timeout(60):
            while not condition(samples := await self.scrape()):
                await asyncio.sleep(0.02)
        return samples


@pytest.fixture
async def shard(serve_shard, caplog) -> Shard:
    with caplog.at_level(logging.INFO):
        shard = await serve_shard(metrics_port=0)
    return Shard(shard, int(caplog.text.rpartition("/metrics")[0].rpartition(":")[2]))


async def test_steps_tokens_and_blocks_are_counted(shard):
    router = shard.shard.router()
    await router.hello()
    await router.plan(1, 2, run_seq_ids=[4, 5, 6])
    await router.result()
    await router.result()
    # A step is counted when its result is on its way.
    samples = await shard.scrape_until(lambda samples: samples["pagewire_shard_steps_total",] == 2)
    assert samples["pagewire_shard_sampled_tokens_total",] == 6
    assert samples["pagewire_shard_computed_tokens_total",] == 12
    assert samples["pagewire_shard_free_blocks", "0"] == 7
    assert samples["pagewire_shard_kv_cache_blocks", "0"] == 10
    assert samples["pagewire_shard_kv_cache_usage_ratio", "0"] == pytest.approx(0.3)
    assert samples["pagewire_shard_prefix_cache_blocks",] == 3
    assert samples["pagewire_shard_step_seconds_sum",] == pytest.approx(0.007)
    assert samples["pagewire_shard_step_part_seconds_sum", "forward"] == pytest.approx(0.006)
    assert samples["pagewire_shard_step_sequences_sum",] == 6
    assert samples["pagewire_shard_step_tokens_sum",] == 12
    assert samples["pagewire_shard_plan_queue_seconds_count",] == 2


async def test_releases_alone_are_steps_but_no_batches(shard):
    router = shard.shard.router()
    await router.hello()
    await router.plan(1, run_seq_ids=[])
    await router.result()
    samples = await shard.scrape_until(lambda samples: samples["pagewire_shard_steps_total",] == 1)
    assert samples["pagewire_shard_step_seconds_count",] == samples["pagewire_shard_step_tokens_count",] == 0


async def test_the_lease_is_shown(shard):
    before = await shard.scrape()
    assert before["pagewire_shard_lease_held",] == before["pagewire_shard_epoch",] == 0
    router = shard.shard.router()
    await router.hello()
    held = await shard.scrape()
    assert held["pagewire_shard_lease_held",] == held["pagewire_shard_epoch",] == 1
    assert 0 < held["pagewire_shard_lease_remaining_seconds",] < 60
    await router.send(goodbye=shard_pb2.Goodbye())
    await shard.scrape_until(lambda samples: samples["pagewire_shard_lease_held",] == 0)


async def test_plan_streams_that_break_are_counted_by_reason(shard):
    assert (await shard.scrape())["pagewire_shard_plan_stream_failures_total", "INVALID_MESSAGE"] == 0
    router = shard.shard.router()
    await router.send(renew_lease=shard_pb2.RenewLease())
    await router.error()
    await shard.scrape_until(lambda samples: samples["pagewire_shard_plan_stream_failures_total", "INVALID_MESSAGE"])


async def test_a_step_that_breaks_is_counted_and_shows_in_ready(shard):
    shard.shard.engine.bugs[1] = RuntimeError("a bug")
    router = shard.shard.router()
    await router.hello()
    assert (await shard.scrape())["pagewire_shard_ready",] == 1
    await router.plan(1)
    await router.error()
    samples = await shard.scrape()
    assert samples["pagewire_shard_failed_steps_total",] == 1
    assert samples["pagewire_shard_ready",] == 0
    assert samples["pagewire_shard_plan_stream_failures_total", "STEP_FAILED"] == 1


async def test_draining_is_shown(shard):
    router = shard.shard.router()
    await router.hello()
    stopping = asyncio.create_task(shard.shard.server.stop(10.0))
    await shard.scrape_until(lambda samples: samples["pagewire_shard_draining",] == 1)
    await router.send(goodbye=shard_pb2.Goodbye())
    await stopping


def test_cached_prefixes_are_counted_in_tokens():
    stats = StepStats()
    result = shard_pb2.StepResult(
        num_computed_tokens=[40, 10], num_cached_tokens=[32, 0], cache_hashes_added=[1, 2, 3], cache_hashes_removed=[4]
    )
    stats.add(result, num_tokens=18, num_queried_tokens=50)
    samples = samples_of(ShardMetrics(stats, lambda: False).render().decode())
    assert samples["pagewire_shard_prefix_cache_queried_tokens_total",] == 50
    assert samples["pagewire_shard_prefix_cache_hit_tokens_total",] == 32
    assert samples["pagewire_shard_prefix_cache_blocks_added_total",] == 3
    assert samples["pagewire_shard_prefix_cache_blocks_removed_total",] == 1


def test_a_shard_that_still_loads_has_metrics():
    samples = samples_of(ShardMetrics(StepStats(), lambda: False).render().decode())
    assert samples["pagewire_shard_ready",] == 0
    assert not any(name == "pagewire_shard_info" for name, *_ in samples)
