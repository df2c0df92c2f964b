"""Processes that are killed, stopped or told to drain while streams run, and starts that fail."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from beam_reference import Search, search
from cluster import SPARE, eventually, is_running, serve, shards_and_router, start_router, start_serve
from pagewire import AsyncClient, BeamSearchParams, SamplingParams, TokenDelta, Unavailable
from pagewire.retry import NEVER, RetryPolicy
from random_models import random_prompts
from reference_model import Comparison, ReferenceModel

NUM_TOKENS = 700
LONG = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=2)
FLAGS = ("--block-size", "16", "--kv-cache-memory", "32MiB")
PATIENT = RetryPolicy(max_unavailable_attempts=100, max_delay_s=0.5)


async def stream(client: AsyncClient, prompt: list[int], on_tokens: Callable[[int], None]) -> list[int]:
    """A greedy stream's tokens; on_tokens hears how many there are."""
    tokens: list[int] = []
    async for event in client.generate({"prompt_token_ids": prompt}, LONG):
        if isinstance(event, TokenDelta):
            tokens += event.token_ids
            on_tokens(len(tokens))
    return tokens


async def check_streams_survive(
    address: str, reference: ReferenceModel, num_streams: int, disturb: Callable[[], Awaitable[None]]
) -> None:
    """Streams go on through a disturbance that comes when all of them have begun, and bring what they should."""
    prompts = random_prompts(tuple(range(10, 10 + num_streams)), seed=8)
    begun: set[int] = set()
    all_have_begun = asyncio.Event()

    def note(i: int, num_tokens: int) -> None:
        if num_tokens >= 3:
            begun.add(i)
        if len(begun) == num_streams:
            all_have_begun.set()

    async with AsyncClient(address, timeout_s=120) as client, asyncio.timeout(120), asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(stream(client, prompt, lambda n, i=i: note(i, n)))  # type: ignore[misc]
            for i, prompt in enumerate(prompts)
        ]
        await all_have_begun.wait()
        assert not any(task.done() for task in tasks), "the disturbance comes too late to disturb anything"
        await disturb()
    comparison = Comparison()
    for prompt, task in zip(prompts, tasks, strict=True):
        tokens = task.result()
        assert len(tokens) == NUM_TOKENS
        comparison.check(reference.greedy_after(prompt, tokens), tokens, f"prompt of {len(prompt)}")
    assert comparison.num_near_ties <= 1


@pytest.mark.slow  # Broken streams with beams are among the workloads of test_scheduling.py.
async def test_beams_go_on_when_the_only_shard_is_killed_in_the_middle(model: Path, reference: ReferenceModel) -> None:
    (prompt,) = random_prompts((30,), seed=12)
    wanted = Search(4, max_new_tokens=60, num_return_sequences=2)
    with serve(model, *FLAGS) as server:
        (shard,) = server.children("pagewire_shard")
        async with AsyncClient(server.wait_ready(), timeout_s=120) as client:
            params = BeamSearchParams(4, wanted.max_new_tokens, n=2, ignore_eos=True)
            searching = asyncio.create_task(client.beam_search({"prompt_token_ids": prompt}, params))
            # The stream beside it tells that steps run.
            beside = SamplingParams(max_tokens=60, ignore_eos=True)
            num_tokens = 0
            async for event in client.generate({"prompt_token_ids": prompt[:5]}, beside):
                num_tokens += len(event.token_ids) if isinstance(event, TokenDelta) else 0
                if num_tokens > 10 and server.children("pagewire_shard") == [shard]:
                    assert not searching.done()
                    os.kill(shard, signal.SIGKILL)
            output = await searching
        assert server.children("pagewire_shard") != [shard]
        assert "Traceback" not in server.errors, server.log()
    expected = search(reference.model, prompt, wanted)
    assert [sequence.tokens for sequence in output.sequences] == [prompt + found.tokens for found in expected]


async def test_streams_go_on_when_the_only_shard_is_killed_and_started_again(
    model: Path, reference: ReferenceModel
) -> None:
    with serve(model, *FLAGS) as server:
        (shard,) = server.children("pagewire_shard")

        async def kill() -> None:
            os.kill(shard, signal.SIGKILL)

        await check_streams_survive(server.wait_ready(), reference, 3, kill)
        eventually(lambda: len(server.children("pagewire_shard")) == 1, "the shard runs again")
        assert server.children("pagewire_shard") != [shard]
        assert "Traceback" not in server.errors, server.log()


@pytest.mark.slow
async def test_a_spare_becomes_the_shard_that_was_killed(model: Path, reference: ReferenceModel) -> None:
    with serve(model, *FLAGS) as server:
        (shard,) = server.children("pagewire_shard")

        def spares() -> list[int]:
            return [pid for pid in server.descendants() if is_running(pid) and psutil.Process(pid).name() == SPARE]

        eventually(lambda: len(spares()) == 1, "a spare waits")
        (spare,) = spares()

        async def kill() -> None:
            os.kill(shard, signal.SIGKILL)

        await check_streams_survive(server.wait_ready(), reference, 3, kill)
        assert server.children("pagewire_shard") == [spare]
        eventually(lambda: len(spares()) == 1, "another spare waits")
        left = spares()
        assert server.stop() == 0
        assert not any(is_running(pid) for pid in [*left, spare])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "draining"])
async def test_streams_move_to_the_other_replica(
    model: Path, reference: ReferenceModel, number: signal.Signals
) -> None:
    """Nobody starts the first replica again, so that only the other one can have finished its streams."""
    with shards_and_router(model, *FLAGS, num_shards=2) as cluster:

        async def end_first() -> None:
            assert all(cluster.sampled_tokens(i) for i in range(2)), "both replicas run streams"
            os.kill(cluster.shards[0].pid, number)

        await check_streams_survive(cluster.address, reference, 6, end_first)
        status = cluster.shards[0].process.wait(30)
        assert status == (0 if number == signal.SIGTERM else -number), cluster.log()
        cluster.num_blocks[0] = 0
        eventually(lambda: cluster.free_blocks(1) == cluster.num_blocks[1], "all blocks of the other replica free")
        assert "Traceback" not in cluster.log(), cluster.log()


async def test_a_shard_that_hangs_is_noticed_and_its_streams_move(model: Path, reference: ReferenceModel) -> None:
    """It keeps its connections open and says nothing: only unanswered pings tell."""
    with shards_and_router(model, *FLAGS, num_shards=2) as cluster:

        async def hang_first() -> None:
            os.kill(cluster.shards[0].pid, signal.SIGSTOP)

        try:
            await check_streams_survive(cluster.address, reference, 6, hang_first)
        finally:
            cluster.shards[0].process.kill()
        eventually(lambda: cluster.free_blocks(1) == cluster.num_blocks[1], "all blocks of the other replica free")


async def test_replicas_that_are_killed_in_turn_lose_no_token(model: Path, reference: ReferenceModel) -> None:
    with serve(model, *FLAGS, "--replicas", "2") as server:
        shards = server.children("pagewire_shard")
        assert len(shards) == 2

        async def kill_both() -> None:
            for shard in shards:
                os.kill(shard, signal.SIGKILL)
                await asyncio.sleep(0.05)

        await check_streams_survive(server.wait_ready(), reference, 4, kill_both)
        eventually(lambda: len(server.children("pagewire_shard")) == 2, "both shards run again")


async def test_a_router_that_is_killed_comes_back_and_finds_the_cached_blocks(model: Path) -> None:
    (prompt,) = random_prompts((200,), seed=9)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    with serve(model, *FLAGS) as server:
        address = server.wait_ready()
        (router,), (shard,) = server.children("pagewire_router"), server.children("pagewire_shard")
        async with AsyncClient(address, timeout_s=60, retry=PATIENT) as client:
            before = await client.complete({"prompt_token_ids": prompt}, params)
            os.kill(router, signal.SIGKILL)
            eventually(lambda: not is_running(router), "the router is gone")
            after = await client.complete({"prompt_token_ids": prompt}, params)
        assert after.outputs[0].token_ids == before.outputs[0].token_ids
        assert (before.num_cached_tokens, after.num_cached_tokens) == (0, 192)
        assert server.children("pagewire_router") != [router]
        assert server.children("pagewire_shard") == [shard]
        assert "Traceback" not in server.errors, server.log()


async def until_served(client: AsyncClient) -> None:
    """Asks again until a request is served."""
    async with asyncio.timeout(60):
        while True:
            try:
                await client.complete({"prompt_token_ids": [1, 2, 3]}, SHORT)
                return
            except Unavailable:
                await asyncio.sleep(0.1)


async def until_not_ready(client: AsyncClient) -> None:
    """Health follows within a fraction of a second."""
    async with asyncio.timeout(10):
        while await client.health():
            await asyncio.sleep(0.05)


async def test_a_router_that_wakes_without_its_shard_says_so_and_takes_it_again_later(
    model: Path, tmp_path: Path
) -> None:
    """It was stopped for so long that another one took the shard."""
    with shards_and_router(model, *FLAGS, "--lease-term", "2") as cluster:
        standby = start_router("standby", cluster.shard_addresses, tmp_path)
        try:
            async with AsyncClient(cluster.address, timeout_s=60, retry=NEVER) as first:
                begun = asyncio.Event()
                running = asyncio.create_task(stream(first, [1, 2, 3], lambda num_tokens: begun.set()))
                await begun.wait()
                os.kill(cluster.router.pid, signal.SIGSTOP)
                try:
                    async with AsyncClient(f"unix:{tmp_path}/standby.sock", timeout_s=60, retry=NEVER) as second:
                        await until_served(second)
                finally:
                    os.kill(cluster.router.pid, signal.SIGCONT)
                async with asyncio.timeout(20):
                    with pytest.raises(Unavailable) as ended:
                        await running
                    with pytest.raises(Unavailable) as refused:
                        await first.complete({"prompt_token_ids": [1, 2, 3]}, SHORT)
                assert ended.value.retry_after_s
                assert refused.value.retry_after_s
                await until_not_ready(first)
                assert standby.stop() == 0
                await until_served(first)
        finally:
            standby.stop()
        assert "Traceback" not in cluster.log(), cluster.log()


async def test_requests_for_a_shard_that_is_dead_for_good_are_told_to_come_back(model: Path) -> None:
    with shards_and_router(model, *FLAGS, router_flags=["--shard-wait", "2"]) as cluster:
        async with AsyncClient(cluster.address, retry=NEVER) as client, asyncio.timeout(60):
            begun = asyncio.Event()
            running = asyncio.create_task(stream(client, [1, 2, 3], lambda num_tokens: begun.set()))
            await begun.wait()
            os.kill(cluster.shards[0].pid, signal.SIGKILL)
            with pytest.raises(Unavailable) as ended:
                await running
            with pytest.raises(Unavailable) as refused:
                await client.complete({"prompt_token_ids": [1, 2, 3]}, SHORT)
            assert ended.value.retry_after_s
            assert refused.value.retry_after_s
            await until_not_ready(client)


def broken(model: Path, directory: Path, what: str) -> tuple[str, tuple[str, ...], str]:
    """A model that cannot be served: its directory, flags for the server, and what the error has to name."""
    copy = directory / "broken-model"
    if what == "missing directory":
        return str(copy), (), str(copy)
    shutil.copytree(model, copy)
    config = copy / "config.json"
    if what == "corrupt safetensors":
        (copy / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    elif what == "truncated safetensors":
        data = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif what == "unknown architecture":
        config.write_text(config.read_text().replace("LlamaForCausalLM", "MambaForCausalLM"))
    elif what == "configuration that is no JSON":
        config.write_text("{")
    elif what == "corrupt tokenizer":
        (copy / "tokenizer.json").write_text("{")
    elif what == "pool too small":
        return str(copy), ("--kv-cache-memory", "10KB", "--max-model-len", "100"), "--kv-cache-memory"
    elif what == "context too long":
        return str(copy), ("--max-model-len", "9999"), "9999"
    return str(copy), (), {"unknown architecture": "MambaForCausalLM"}.get(what, str(copy))


@pytest.mark.parametrize(
    "what",
    [
        "missing directory",
        "corrupt safetensors",
        "truncated safetensors",
        "unknown architecture",
        "configuration that is no JSON",
        "corrupt tokenizer",
        "pool too small",
        "context too long",
    ],
)
def test_a_start_that_fails_says_why_in_one_line_and_leaves_nothing(model: Path, tmp_path: Path, what: str) -> None:
    path, flags, named = broken(model, tmp_path, what)
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        server = start_serve(path, Path(name), *flags)
        try:
            status = server.process.wait(60)
        finally:
            server.stop()
        left = [p.pid for p in psutil.process_iter(["cmdline"]) if path in (p.info["cmdline"] or ())]
        assert status == 1, server.log()
        # The shard may have told what it has loaded while the tokenizer was being read beside it.
        *_, line = server.errors.splitlines()
        assert server.errors.count("error: ") == 1, server.log()
        assert "Traceback" not in server.errors, server.log()
        assert line.startswith("error: "), line
        assert named in line
        assert path in line
        assert server.output == ""
        assert not left
        assert not list(Path(name).glob("pagewire*"))
