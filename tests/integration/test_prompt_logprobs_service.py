"""Log-probabilities of prompts as clients get them: streamed and whole, through the client and through bare stubs."""

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest
import torch
import transformers
from cluster import Cluster, serve
from pagewire import AsyncClient, Client, InvalidRequest, PromptLogprobs, SamplingParams, Started
from pagewire.outputs import Logprob
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from random_models import random_prompts
from reference_model import ReferenceModel
from streams import TEXT

ONE = {"temperature": 0.0, "max_tokens": 1}


def check(reference: ReferenceModel, prompt: list[int], positions: list[dict[int, Logprob]], num_top: int) -> None:
    """Each dictionary, of the tokens from the second one on, has the prompt's token first, then the most probable."""
    with torch.no_grad():
        rows = reference.model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    assert len(positions) == len(prompt) - 1
    for token, entry, row in zip(prompt[1:], positions, rows, strict=True):
        assert next(iter(entry)) == token
        assert num_top <= len(entry) <= num_top + 1
        ranked = row.sort(descending=True).values
        for other, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(row[other]), abs=1e-4)
            assert float(ranked[logprob.rank - 1]) == pytest.approx(float(row[other]), abs=1e-4)


@pytest.mark.parametrize("num_top", [0, 5])
def test_a_whole_answer_has_vllms_form(
    client: Client, reference: ReferenceModel, tokenizer: transformers.PreTrainedTokenizerFast, num_top: int
) -> None:
    for _ in range(2):  # The second time from a cached prefix, as far as it may be used.
        output = client.complete(TEXT, SamplingParams(**ONE, prompt_logprobs=num_top, logprobs=0))
        first, *others = output.prompt_logprobs
        assert first is None
        assert output.prompt_token_ids == tokenizer.encode(TEXT)
        check(reference, output.prompt_token_ids, others, num_top)
        texts = [entry[token].decoded_token for token, entry in zip(output.prompt_token_ids[1:], others, strict=True)]
        assert "".join(texts) == TEXT[len(tokenizer.decode(output.prompt_token_ids[:1])) :]
        assert output.num_cached_tokens == 0
        [token] = output.outputs[0].token_ids
        assert output.outputs[0].cumulative_logprob == output.outputs[0].logprobs[0][token].logprob
    assert client.complete([5], SamplingParams(**ONE, prompt_logprobs=num_top)).prompt_logprobs == [None]
    assert client.complete(TEXT, SamplingParams(**ONE)).prompt_logprobs is None


def test_a_stream_brings_all_of_them_before_the_first_token(client: Client, reference: ReferenceModel) -> None:
    [prompt] = random_prompts((1500,), seed=3)
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, prompt_logprobs=4, n=1, logprobs=1)
    started, *events = list(client.generate({"prompt_token_ids": prompt}, params))
    assert isinstance(started, Started)
    parts = [event for event in events if isinstance(event, PromptLogprobs)]
    assert events[: len(parts)] == parts
    assert len(parts) > 3
    positions: list[dict[int, Logprob]] = []
    for part in parts:
        assert part.first_position == 1 + len(positions)
        positions += part.logprobs
    check(reference, prompt, positions, 4)
    deltas, finished = events[len(parts) : -1], events[-1]
    logprobs = [entry[token].logprob for d in deltas for token, entry in zip(d.token_ids, d.logprobs, strict=True)]
    assert len(logprobs) == 5
    assert finished.cumulative_logprob == pytest.approx(sum(logprobs))


def test_bare_stubs_need_nothing_else(cluster: Cluster, reference: ReferenceModel) -> None:
    [prompt] = random_prompts((40,), seed=4)
    params = inference_pb2.SamplingParams(n=2, seed=1, max_tokens=2, prompt_logprobs=1, detokenize=False)
    request = inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=prompt), sampling_params=params, cache_salt="stubs"
    )
    with grpc.insecure_channel(cluster.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        result = stub.Complete(request)
        events = list(stub.Generate(request))
    with torch.no_grad():
        rows = reference.model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    chosen = rows.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert [entry.token_id for entry in result.prompt_logprobs] == prompt[1:]
    torch.testing.assert_close(
        torch.tensor([entry.logprob for entry in result.prompt_logprobs]), chosen, atol=1e-4, rtol=0
    )
    assert not any(entry.HasField("token_text") or entry.top_token_texts for entry in result.prompt_logprobs)
    assert all(len(entry.top_token_ids) == 1 for entry in result.prompt_logprobs)
    assert not any(completion.finished.HasField("cumulative_logprob") for completion in result.completions)
    [part] = [event.prompt_logprobs for event in events if event.HasField("prompt_logprobs")]
    assert (part.first_position, list(part.logprobs)) == (1, list(result.prompt_logprobs))


@pytest.mark.parametrize("value", [-1, 21])
def test_more_than_the_servers_limit_is_refused_by_name(cluster: Cluster, value: int) -> None:
    request = inference_pb2.GenerateRequest(text=TEXT, sampling_params={"prompt_logprobs": value})
    with grpc.insecure_channel(cluster.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Complete(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(f"sampling_params.prompt_logprobs: is {value}; accepted: 0 to 20")
    with Client(cluster.address) as client, pytest.raises(InvalidRequest):
        client.complete(TEXT, SamplingParams(prompt_logprobs=21))


@pytest.mark.slow
async def test_none_is_lost_when_the_shard_is_killed_while_it_reads_the_prompt(
    model: Path, reference: ReferenceModel
) -> None:
    prompts = random_prompts((900,) * 12 + (50,), seed=5)
    with serve(model, "--block-size", "16", "--kv-cache-memory", "32MiB", "--max-num-batched-tokens", "8") as server:
        [shard] = server.children("pagewire_shard")

        async def score(prompt: list[int], on_part: asyncio.Event) -> list[dict[int, Logprob]]:
            positions: list[dict[int, Logprob]] = []
            params = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=2)
            async for event in client.generate({"prompt_token_ids": prompt}, params):
                if isinstance(event, PromptLogprobs):
                    assert event.first_position == 1 + len(positions)
                    positions += event.logprobs
                    on_part.set()
            return positions

        async with AsyncClient(server.wait_ready(), timeout_s=120) as client, asyncio.timeout(120):
            begun = [asyncio.Event() for _ in prompts]
            tasks = [asyncio.create_task(score(*each)) for each in zip(prompts, begun, strict=True)]
            await begun[0].wait()
            assert not tasks[-2].done()
            os.kill(shard, signal.SIGKILL)
            answers = await asyncio.gather(*tasks)
        for prompt, positions in zip(prompts, answers, strict=True):
            check(reference, prompt, positions, 2)
        assert "Traceback" not in server.errors, server.log()
