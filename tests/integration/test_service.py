"""Streams, the prefix cache, many clients, and clients that go away."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from cluster import Cluster, eventually, shards_and_router
from pagewire import AsyncClient, Client, DeadlineExceeded, InvalidRequest, SamplingParams
from random_models import random_prompts
from reference_model import Comparison, ReferenceModel
from streams import GREEDY, TEXT, collect

BLOCK_SIZE = 16


def test_a_stream_brings_the_models_tokens_and_their_text(
    client: Client, reference: ReferenceModel, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    prompt = tokenizer.encode(TEXT)
    text, tokens, finished = collect(list(client.generate(TEXT, GREEDY)))
    Comparison().check(reference.generate(prompt, 24), tokens, "stream")
    assert text == tokenizer.decode(tokens)
    assert finished.finish_reason == "length"
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (len(prompt), 24)
    output = client.complete(TEXT, GREEDY)
    assert (output.outputs[0].text, output.outputs[0].token_ids) == (text, tokens)
    assert output.prompt_token_ids == prompt


async def test_the_asynchronous_client_brings_the_same(cluster: Cluster, client: Client) -> None:
    async with AsyncClient(cluster.address) as other:
        events = [event async for event in other.generate({"prompt": TEXT}, GREEDY)]
    assert collect(events)[:2] == collect(list(client.generate(TEXT, GREEDY)))[:2]


def test_a_second_request_computes_only_what_follows_the_cached_prefix(
    client: Client, reference: ReferenceModel
) -> None:
    prefix, first, second = random_prompts((1000, 7, 9), seed=4)
    for suffix in (first, second, second):
        prompt = prefix + suffix
        output = client.complete({"prompt_token_ids": prompt}, GREEDY)
        Comparison().check(reference.generate(prompt, 24), output.outputs[0].token_ids, "cached prefix")
    outputs = [client.complete({"prompt_token_ids": prefix + s}, GREEDY) for s in (first, second)]
    third = client.complete({"prompt_token_ids": [*prefix, 1, 2, 3]}, GREEDY)
    assert third.num_cached_tokens == 1000 // BLOCK_SIZE * BLOCK_SIZE
    assert [output.num_cached_tokens for output in outputs] == [1006 // BLOCK_SIZE * BLOCK_SIZE, 1008]
    salted = client.complete({"prompt_token_ids": prefix + first}, GREEDY, cache_salt="mine")
    assert salted.num_cached_tokens == 0
    assert salted.outputs[0].token_ids == outputs[0].outputs[0].token_ids


async def test_five_hundred_streams_at_once_all_finish_right(cluster: Cluster, reference: ReferenceModel) -> None:
    prompts = random_prompts(tuple(range(1, 26)), seed=5)
    expected = [reference.generate(prompt, 24) for prompt in prompts]
    comparison = Comparison()
    async with AsyncClient(cluster.address) as client:

        async def stream(i: int) -> None:
            events = [event async for event in client.generate({"prompt_token_ids": prompts[i % 25]}, GREEDY)]
            comparison.check(expected[i % 25], collect(events)[1], f"stream {i}")

        await asyncio.gather(*(stream(i) for i in range(500)))
    assert comparison.num_near_ties <= 20


def test_a_client_that_is_killed_gives_its_blocks_back(cluster: Cluster) -> None:
    script = """
import sys
from pagewire import Client, SamplingParams
params = SamplingParams(max_tokens=1900, ignore_eos=True, n=8)
for i, event in enumerate(Client(sys.argv[1]).generate("Hello", params)):
    if i == 3:
        print("streaming", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script, cluster.address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "streaming\n"
    eventually(lambda: cluster.free_blocks() < cluster.num_blocks[0], "blocks in use")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    sampled_before = cluster.sampled_tokens()
    cluster.check_all_blocks_come_back()
    assert cluster.sampled_tokens() - sampled_before < 8 * 1900


def test_leaving_a_stream_gives_its_blocks_back(cluster: Cluster, client: Client) -> None:
    events = client.generate("Hello", SamplingParams(max_tokens=1900, ignore_eos=True, n=8))
    for _ in range(4):
        next(events)
    events.close()
    cluster.check_all_blocks_come_back()


def test_a_deadline_ends_a_request_and_frees_its_blocks(cluster: Cluster, client: Client) -> None:
    params = SamplingParams(max_tokens=1900, ignore_eos=True, n=64)
    with pytest.raises(DeadlineExceeded):
        client.complete("Hello", params, timeout_s=0.3)
    cluster.check_all_blocks_come_back()


def test_four_requests_on_a_pool_too_small_for_two_all_finish_right(model: Path, reference: ReferenceModel) -> None:
    # A block of 8 tokens has 2 layers * 2 * 8 tokens * 2 heads * 8 numbers * 4 bytes.
    block_bytes = 2 * 2 * 8 * 2 * 8 * 4
    flags = ("--max-model-len", "128", "--block-size", "8", "--kv-cache-memory", str(16 * block_bytes))
    prompts = random_prompts((40, 41, 42, 43), seed=6)
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    with shards_and_router(model, *flags) as cluster, Client(cluster.address, timeout_s=120) as client:
        assert cluster.num_blocks == [16]
        outputs = client.complete_many([{"prompt_token_ids": prompt} for prompt in prompts], params)
        cluster.check_all_blocks_come_back()
    for prompt, output in zip(prompts, outputs, strict=True):
        Comparison().check(reference.generate(prompt, 60), output.outputs[0].token_ids, "small pool")


def test_a_request_that_can_never_fit_is_refused_at_once(model: Path) -> None:
    with shards_and_router(
        model, "--max-model-len", "128", "--kv-cache-memory", "40KB", "--max-num-seqs", "8"
    ) as cluster:
        with Client(cluster.address, timeout_s=30) as client:
            with pytest.raises(InvalidRequest, match="128"):
                client.complete({"prompt_token_ids": [1] * 128}, GREEDY)
            # Where not all sequences of a request fit, they run one after another.
            wide = client.complete({"prompt_token_ids": [1] * 100}, SamplingParams(max_tokens=28, n=4))
            assert len(wide.outputs) == 4
            assert client.complete({"prompt_token_ids": [1] * 100}, GREEDY).outputs[0].finish_reason == "length"
