"""Processes that are told to stop while a stream runs, and requests that run for longer than they may."""

import asyncio
import os
import signal
from pathlib import Path

import httpx2
import pytest
from cluster import Cluster, shards_and_router
from pagewire import AsyncClient, DeadlineExceeded, SamplingParams, TokenDelta, Unavailable
from pagewire.retry import NEVER
from random_models import random_prompts

(PROMPT,) = random_prompts((12,), seed=4)
LONG = SamplingParams(temperature=0.0, max_tokens=700, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=2)
LIMIT = "the longest time that this server lets one run"
FLAGS = ("--block-size", "16", "--kv-cache-memory", "32MiB")


async def count_tokens(client: AsyncClient, begun: asyncio.Event) -> int:
    num_tokens = 0
    async for event in client.generate({"prompt_token_ids": PROMPT}, LONG):
        if isinstance(event, TokenDelta):
            num_tokens += len(event.token_ids)
            begun.set()
    return num_tokens


async def check_drains(cluster: Cluster, pid: int) -> None:
    """A stream that runs when a process is told to stop finishes; what comes later is told to come back."""
    async with AsyncClient(cluster.address, timeout_s=120, retry=NEVER) as client, asyncio.timeout(120):
        begun = asyncio.Event()
        running = asyncio.create_task(count_tokens(client, begun))
        await begun.wait()
        os.kill(pid, signal.SIGTERM)
        while await client.health():
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable) as refused:
            await client.complete({"prompt_token_ids": PROMPT}, SHORT)
        assert refused.value.retry_after_s
        async with httpx2.AsyncClient(base_url=f"http://{cluster.router.http_address()}") as http:
            body = {"prompt": PROMPT, "max_tokens": 2}
            answer = await http.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert not running.done(), "the stream is too short to see anything drain"
        assert await running == LONG.max_tokens


async def test_a_router_that_is_told_to_stop_finishes_what_runs(model: Path) -> None:
    with shards_and_router(model, *FLAGS, router_flags=["--drain-grace", "60", "--http-port", "0"]) as cluster:
        await check_drains(cluster, cluster.router.pid)
        assert cluster.router.process.wait(30) == 0, cluster.log()
        assert "Traceback" not in cluster.log()


async def test_a_shard_that_is_told_to_stop_finishes_what_runs(model: Path) -> None:
    with shards_and_router(model, *FLAGS, "--drain-grace", "60", router_flags=["--http-port", "0"]) as cluster:
        await check_drains(cluster, cluster.shards[0].pid)
        assert cluster.shards[0].process.wait(30) == 0, cluster.log()
        assert "Traceback" not in cluster.log()


@pytest.mark.slow
async def test_what_does_not_finish_within_the_grace_is_told_to_come_back(model: Path) -> None:
    with shards_and_router(model, *FLAGS, router_flags=["--drain-grace", "0"]) as cluster:
        async with AsyncClient(cluster.address, timeout_s=120, retry=NEVER) as client, asyncio.timeout(120):
            begun = asyncio.Event()
            running = asyncio.create_task(count_tokens(client, begun))
            await begun.wait()
            os.kill(cluster.router.pid, signal.SIGTERM)
            with pytest.raises(Unavailable, match="the router stops") as ended:
                await running
            assert ended.value.retry_after_s
        assert cluster.router.process.wait(30) == 0, cluster.log()


async def test_a_request_ends_at_the_servers_limit_and_leaves_nothing(model: Path) -> None:
    with shards_and_router(model, *FLAGS, router_flags=["--max-request-time", "0.3"]) as cluster:
        async with AsyncClient(cluster.address, retry=NEVER) as client, asyncio.timeout(120):
            for timeout_s in (None, 60.0):
                with pytest.raises(DeadlineExceeded, match=LIMIT):
                    await client.complete({"prompt_token_ids": PROMPT}, LONG, timeout_s=timeout_s)
            cluster.check_all_blocks_come_back()

            os.kill(cluster.shards[0].pid, signal.SIGKILL)
            while await client.health():
                await asyncio.sleep(0.01)
            with pytest.raises(DeadlineExceeded, match=LIMIT):
                await client.complete({"prompt_token_ids": PROMPT}, SHORT)
