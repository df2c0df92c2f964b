"""Groups of several stages, each a process of its own or two: everything that is served, and stages that are lost."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from cluster import Cluster, Service, eventually, is_running, serve
from pagewire import AsyncClient, BeamSearchParams, Client, SamplingParams
from random_models import random_prompts
from reference_model import Comparison, ReferenceModel

from tests.integration.test_faults import check_streams_survive
from tests.integration.test_tensor_parallel_groups import NOTICED_WITHIN_S, PARAMS, POOL, facts, logprobs

TWO_STAGES = ("--pipeline-parallel-size", "2")
FOUR_RANKS = (*TWO_STAGES, "--tensor-parallel-size", "2")


def check_answers_as_a_shard_alone(group: Service, cluster: Cluster) -> None:
    (prompt,) = random_prompts((70,), seed=5)
    with Client(group.wait_ready(), timeout_s=120) as staged, Client(cluster.address, timeout_s=120) as alone:
        for name, params in PARAMS.items():
            answers = [client.complete({"prompt_token_ids": prompt}, params) for client in (staged, alone)]
            assert facts(answers[0]) == facts(answers[1]), name
            assert logprobs(answers[0]) == pytest.approx(logprobs(answers[1]), abs=1e-4), name
        again = staged.complete({"prompt_token_ids": prompt}, PARAMS["penalties"])
        assert again.num_cached_tokens == 64  # of the prefix cache
        beams = [
            client.beam_search({"prompt_token_ids": prompt}, BeamSearchParams(3, 12, n=2, ignore_eos=True))
            for client in (staged, alone)
        ]
        assert [s.tokens for s in beams[0].sequences] == [s.tokens for s in beams[1].sequences]


def test_two_stages_answer_as_a_shard_alone(model: Path, cluster: Cluster) -> None:
    with serve(model, *POOL, *TWO_STAGES) as group:
        check_answers_as_a_shard_alone(group, cluster)


@pytest.mark.slow
def test_two_stages_of_two_ranks_answer_as_a_shard_alone(model: Path, cluster: Cluster) -> None:
    with serve(model, *POOL, *FOUR_RANKS) as group:
        check_answers_as_a_shard_alone(group, cluster)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [TWO_STAGES, FOUR_RANKS], ids=["pp 2", "tp 2 x pp 2"])
async def test_requests_that_are_preempted_in_stages_go_on(
    model: Path, reference: ReferenceModel, ranks: tuple[str, ...]
) -> None:
    prompts = random_prompts(tuple(range(20, 36)), seed=9)
    params = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
    flags = ("--block-size", "16", "--kv-cache-memory", "128KiB", "--max-model-len", "512", "--max-num-seqs", "16")
    with serve(model, *flags, *ranks) as server:
        async with AsyncClient(server.wait_ready(), timeout_s=240) as client:
            outputs = await asyncio.gather(*(client.complete({"prompt_token_ids": p}, params) for p in prompts))
    comparison = Comparison()
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = output.outputs[0].token_ids
        comparison.check(reference.greedy_after(prompt, tokens), tokens, f"prompt of {len(prompt)}")
    assert comparison.num_near_ties <= 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1], ids=["last stage", "first stage"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_32_streams_go_on_when_a_stage_is_lost(
    model: Path, reference: ReferenceModel, number: signal.Signals, rank: int
) -> None:
    with serve(model, *POOL, *TWO_STAGES) as server:
        ranks = sorted(server.children("pagewire_shard"))
        took_s = 0.0

        async def lose() -> None:
            nonlocal took_s
            lost_s = time.monotonic()
            os.kill(ranks[rank], number)
            while is_running(ranks[1 - rank]):
                assert time.monotonic() - lost_s < 10 * NOTICED_WITHIN_S, "the other stage waits for ever"
                await asyncio.sleep(0.02)
            took_s = time.monotonic() - lost_s

        await check_streams_survive(server.wait_ready(), reference, 32, lose)
        assert took_s < NOTICED_WITHIN_S
        eventually(lambda: len(server.children("pagewire_shard")) == 2, "both stages run again")
        assert not set(ranks) & set(server.children("pagewire_shard"))
        assert "Traceback" not in server.errors, server.log()
