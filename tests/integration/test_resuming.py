"""Streams of every kind go on when their router is killed: the client resumes them, and nothing is lost or doubled."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, shards_and_router, start_router
from pagewire import (
    AsyncClient,
    BeamSearchParams,
    Event,
    PromptLogprobs,
    SamplingParams,
    SequenceFinished,
    Started,
    StructuredOutputsParams,
    TokenDelta,
)

FLAGS = ("--block-size", "16", "--kv-cache-memory", "32MiB")
LONG: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True}
KINDS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0, **LONG),
    "sampled without a seed": SamplingParams(temperature=0.9, **LONG),
    "several": SamplingParams(n=3, temperature=1.0, seed=4, **LONG),
    "stop strings": SamplingParams(temperature=0.8, seed=5, stop=["zq zq zq", "\n\n\n\n\n"], min_tokens=20, **LONG),
    "log-probabilities": SamplingParams(temperature=0.0, logprobs=2, prompt_logprobs=1, **LONG),
    "penalties": SamplingParams(
        temperature=0.7, seed=6, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.2, **LONG
    ),
    "grammar": SamplingParams(
        temperature=0.9, seed=7, structured_outputs=StructuredOutputsParams(regex="[a-z ]{300}"), max_tokens=120
    ),
}


class Answer:
    """What a stream brought, put together as a caller would."""

    def __init__(self) -> None:
        self.num_started = 0
        self.seed = 0
        self.text: dict[int, str] = {}
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: list[Any] = []
        self.ends: dict[int, tuple[object, ...]] = {}

    def take(self, event: Event) -> None:
        match event:
            case Started():
                self.num_started += 1
                self.seed = event.seed
            case PromptLogprobs():
                self.logprobs += event.logprobs
            case TokenDelta():
                self.text[event.index] = self.text.get(event.index, "") + event.text
                self.tokens.setdefault(event.index, []).extend(event.token_ids)
                self.logprobs += event.logprobs or []
            case SequenceFinished():
                assert event.index not in self.ends
                usage = event.usage.prompt_tokens, event.usage.completion_tokens
                self.ends[event.index] = event.finish_reason, event.stop_reason, usage, event.cumulative_logprob

    def everything(self) -> tuple[object, ...]:
        return self.num_started, self.text, self.tokens, self.logprobs, self.ends


async def stream(client: AsyncClient, params: SamplingParams, on_event: Callable[[], None]) -> Answer:
    answer = Answer()
    async for event in client.generate("Once upon a time", params):
        answer.take(event)
        on_event()
    return answer


async def check_nothing_is_lost(client: AsyncClient, disturb: Callable[[], Awaitable[None]]) -> None:
    """Disturbs streams of every kind when all of them have begun, and compares them with undisturbed ones."""
    num_events = dict.fromkeys(KINDS, 0)
    have_begun = asyncio.Event()

    def note(kind: str) -> None:
        num_events[kind] += 1
        if min(num_events.values()) >= 4:
            have_begun.set()

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        tasks = {
            kind: group.create_task(stream(client, params, lambda kind=kind: note(kind)))  # type: ignore[misc]
            for kind, params in KINDS.items()
        }
        beams = BeamSearchParams(3, 40, n=2, ignore_eos=True)
        search = group.create_task(client.beam_search("Once upon a time", beams))
        await have_begun.wait()
        assert not any(task.done() for task in tasks.values()), "the disturbance comes too late to disturb anything"
        await disturb()
    assert len(search.result().sequences) == 2
    for kind, params in KINDS.items():
        disturbed = tasks[kind].result()
        if params.seed is None:
            params = params.clone()
            params.seed = disturbed.seed
        alone = await stream(client, params, lambda: None)
        assert disturbed.everything() == alone.everything(), kind


async def kill_and_start_again(cluster: Cluster) -> None:
    cluster.router.process.kill()
    cluster.router.process.wait()
    directory = Path(cluster.address.removeprefix("unix:")).parent
    cluster.router = await asyncio.to_thread(start_router, "router", cluster.shard_addresses, directory)
    await asyncio.to_thread(cluster.router.wait_ready)


@pytest.mark.slow  # tests/chaos has a smaller one.
async def test_streams_of_every_kind_go_on_when_the_router_is_killed() -> None:
    with shards_and_router(Path("demo"), *FLAGS) as cluster:
        try:
            async with AsyncClient(cluster.address, timeout_s=100) as client:
                await check_nothing_is_lost(client, lambda: kill_and_start_again(cluster))
            cluster.check_all_blocks_come_back()
            assert "Traceback" not in cluster.log(), cluster.log()
        finally:
            cluster.router.process.send_signal(signal.SIGTERM)
            cluster.router.stop()
