"""Groups of two ranks, each a process of its own: everything that is served, and ranks that are killed or hang."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Service, eventually, is_running, serve
from pagewire import (
    AsyncClient,
    BeamSearchParams,
    Client,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
    TokenDelta,
)
from random_models import random_prompts
from reference_model import Comparison, ReferenceModel

from tests.integration.test_faults import LONG, check_streams_survive

POOL = ("--block-size", "16", "--kv-cache-memory", "32MiB")
TWO_RANKS = ("--tensor-parallel-size", "2")
NOTICED_WITHIN_S = 3.0
PARAMS = {
    "sampled, several": SamplingParams(temperature=0.8, top_p=0.9, seed=11, n=3, max_tokens=20, ignore_eos=True),
    "penalties": SamplingParams(temperature=0.0, presence_penalty=1.0, repetition_penalty=1.3, max_tokens=20),
    "log-probabilities": SamplingParams(temperature=0.0, max_tokens=8, logprobs=3, prompt_logprobs=2),
    "grammar": SamplingParams(
        seed=3, max_tokens=40, structured_outputs=StructuredOutputsParams(regex="(ab|cd){4}[0-9]{3}")
    ),
}


@pytest.fixture(scope="module")
def group(model: Path) -> Iterator[Service]:
    with serve(model, *POOL, *TWO_RANKS) as server:
        yield server


def facts(output: RequestOutput) -> object:
    """What an answer says, with log-probabilities apart: those are equal up to rounding."""
    return [(each.token_ids, each.text, each.finish_reason) for each in output.outputs]


def logprobs(output: RequestOutput) -> list[float]:
    """All log-probabilities of an answer."""
    positions = [*(output.prompt_logprobs or []), *(each for o in output.outputs for each in o.logprobs or [])]
    return [entry.logprob for position in positions if position for _, entry in sorted(position.items())]


def test_a_group_answers_as_a_shard_alone(group: Service, cluster: Cluster) -> None:
    (prompt,) = random_prompts((70,), seed=5)
    with Client(group.wait_ready(), timeout_s=120) as two, Client(cluster.address, timeout_s=120) as alone:
        for name, params in PARAMS.items():
            answers = [client.complete({"prompt_token_ids": prompt}, params) for client in (two, alone)]
            assert facts(answers[0]) == facts(answers[1]), name
            assert logprobs(answers[0]) == pytest.approx(logprobs(answers[1]), abs=1e-4), name
        again = two.complete({"prompt_token_ids": prompt}, PARAMS["penalties"])
        assert again.num_cached_tokens == 64  # of the prefix cache
        beams = [
            client.beam_search({"prompt_token_ids": prompt}, BeamSearchParams(3, 12, n=2, ignore_eos=True))
            for client in (two, alone)
        ]
        assert [s.tokens for s in beams[0].sequences] == [s.tokens for s in beams[1].sequences]


@pytest.mark.slow
async def test_requests_that_are_preempted_in_a_group_go_on(model: Path, reference: ReferenceModel) -> None:
    prompts = random_prompts(tuple(range(20, 36)), seed=9)
    params = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
    # 1,024 tokens a rank hold three of these.
    flags = ("--block-size", "16", "--kv-cache-memory", "128KiB", "--max-model-len", "512", "--max-num-seqs", "16")
    with serve(model, *flags, *TWO_RANKS) as server:
        async with AsyncClient(server.wait_ready(), timeout_s=240) as client:
            outputs = await asyncio.gather(*(client.complete({"prompt_token_ids": p}, params) for p in prompts))
    comparison = Comparison()
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = output.outputs[0].token_ids
        comparison.check(reference.greedy_after(prompt, tokens), tokens, f"prompt of {len(prompt)}")
    assert comparison.num_near_ties <= 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_32_streams_go_on_when_a_rank_is_lost(
    model: Path, reference: ReferenceModel, number: signal.Signals, rank: int
) -> None:
    with serve(model, *POOL, *TWO_RANKS) as server:
        ranks = sorted(server.children("pagewire_shard"))
        took_s = 0.0

        async def lose() -> None:
            nonlocal took_s
            lost_s = time.monotonic()
            os.kill(ranks[rank], number)
            other = ranks[1 - rank]
            while is_running(other):
                assert time.monotonic() - lost_s < 10 * NOTICED_WITHIN_S, "the other rank waits for ever"
                await asyncio.sleep(0.02)
            took_s = time.monotonic() - lost_s

        await check_streams_survive(server.wait_ready(), reference, 32, lose)
        assert took_s < NOTICED_WITHIN_S
        eventually(lambda: len(server.children("pagewire_shard")) == 2, "both ranks run again")
        assert not set(ranks) & set(server.children("pagewire_shard"))
        assert "Traceback" not in server.errors, server.log()


@pytest.mark.slow
async def test_a_router_that_is_killed_finds_the_ranks_of_its_group_in_step(
    model: Path, reference: ReferenceModel
) -> None:
    """It ends in the middle of many plans, so that ranks hear of its end at different times; none is lost for that."""
    (prompt,) = random_prompts((30,), seed=3)
    with serve(model, *POOL, *TWO_RANKS) as server:
        ranks = server.children("pagewire_shard")
        for _ in range(5):
            (router,) = server.children("pagewire_router")
            async with AsyncClient(server.wait_ready(), timeout_s=120) as client:
                tokens: list[int] = []
                async for event in client.generate({"prompt_token_ids": prompt}, LONG):
                    tokens += event.token_ids if isinstance(event, TokenDelta) else []
                    if len(tokens) > 50 and server.children("pagewire_router") == [router]:
                        os.kill(router, signal.SIGKILL)
            expected = reference.greedy_after(prompt, tokens)
            comparison = Comparison()
            comparison.check(expected, tokens, "through a new router")
            assert server.children("pagewire_shard") == ranks, server.log()
