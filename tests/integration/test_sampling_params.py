"""Sampling parameters where there is no room: the same tokens as where there is, and the model's own defaults."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cluster import Cluster, free_port, read_metrics, serve, shards_and_router
from pagewire import Client, InvalidRequest, SamplingParams, TokenDelta
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from streams import TEXT

DEFAULTS = {"temperature": 0.7, "top_k": 40, "max_new_tokens": 7}
MAX_NUM_SEQS = 6
METRICS_PORT = free_port()


@pytest.fixture(scope="module")
def tight(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The same weights with defaults of their own, six sequences at a time and few blocks."""
    directory = tmp_path_factory.mktemp("with-defaults") / "model"
    shutil.copytree(model, directory)
    path = directory / "generation_config.json"
    stated = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(stated | DEFAULTS))
    flags = ("--block-size", "4", "--kv-cache-memory", "40KiB", "--max-num-seqs", str(MAX_NUM_SEQS))
    router_flags = ["--metrics-port", str(METRICS_PORT), "--max-logprobs", "-1"]
    with shards_and_router(directory, *flags, router_flags=router_flags) as cluster:
        yield cluster
        cluster.check_all_blocks_come_back()
        assert "Traceback" not in cluster.log(), cluster.log()


@pytest.fixture(scope="module")
def tight_client(tight: Cluster) -> Iterator[Client]:
    with Client(tight.address, timeout_s=120) as client:
        yield client


def test_128_sequences_run_where_six_fit(client: Client, tight: Cluster, tight_client: Client) -> None:
    params = SamplingParams(n=128, seed=5, max_tokens=20, ignore_eos=True, temperature=1.0, top_k=0)
    output = tight_client.complete(TEXT, params)
    assert [sequence.index for sequence in output.outputs] == list(range(128))
    tokens = [sequence.token_ids for sequence in output.outputs]
    assert all(len(sequence) == 20 for sequence in tokens)
    assert len({tuple(sequence) for sequence in tokens}) == 128
    # Where all of them fit at once, and where only the first does.
    assert [sequence.token_ids for sequence in client.complete(TEXT, params).outputs] == tokens
    one = params.clone()
    one.n = 1
    assert client.complete(TEXT, one).outputs[0].token_ids == tokens[0]
    assert len({event.index for event in tight_client.generate(TEXT, params) if hasattr(event, "index")}) == 128


def test_the_models_defaults_are_the_same_in_python_on_the_command_line_and_for_generated_stubs(
    tight: Cluster, tight_client: Client, client: Client
) -> None:
    stated = SamplingParams.from_proto(tight_client.get_model().default_sampling_params)
    assert (stated.temperature, stated.top_k, stated.max_tokens) == (0.7, 40, 7)
    # A model without such defaults, told the same.
    spelled_out = client.complete(TEXT, SamplingParams(temperature=0.7, top_k=40, max_tokens=7, seed=3))
    expected = spelled_out.outputs[0]
    assert tight_client.complete(TEXT, SamplingParams(seed=3)).outputs[0].token_ids == expected.token_ids
    with grpc.insecure_channel(tight.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = inference_pb2.GenerateRequest(text=TEXT, sampling_params=inference_pb2.SamplingParams(seed=3))
        assert list(stub.Complete(request, timeout=180).completions[0].token_ids) == expected.token_ids
        without = stub.Complete(inference_pb2.GenerateRequest(text=TEXT), timeout=180)
        assert len(without.completions[0].token_ids) <= 7
    command = [sys.executable, "-m", "pagewire", "complete", TEXT, "--server", tight.address, "--seed", "3"]
    command += ["--max-tokens", "7", "--no-stream"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout
    assert printed == f"{expected.text}\n"


def test_what_is_given_wins_over_the_models_defaults(client: Client, tight_client: Client) -> None:
    params = SamplingParams(temperature=1.0, top_k=0, max_tokens=16, seed=3)
    tokens = client.complete(TEXT, SamplingParams(seed=3)).outputs[0].token_ids
    assert tight_client.complete(TEXT, params).outputs[0].token_ids == tokens


VARIANTS = [
    {},
    {"n": 3},
    {"temperature": 0.0},
    {"top_p": 0.7, "min_p": 0.01},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"logit_bias": {41: 3.0, 7: -100.0}},
    {"min_tokens": 12, "ignore_eos": False, "stop": ["e"], "include_stop_str_in_output": True},
    {"stop_token_ids": list(range(40)), "ignore_eos": False},
    {"logprobs": 3},
    {"truncate_prompt_tokens": 4},
    {"allowed_token_ids": list(range(30, 90))},
    {"bad_words": ["e", "the", "is"]},
    {"prompt_logprobs": 1},
]


def answers(client: Client, *, at_once: bool) -> list[list[tuple[object, ...]]]:
    """What each of the variants yields, two seeds of each."""
    common = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.9, "top_k": 50}
    params = [SamplingParams(**{**common, **variant, "seed": seed}) for variant in VARIANTS for seed in (1, 2)]
    if at_once:
        outputs = client.complete_many([TEXT] * len(params), params)
    else:
        outputs = [client.complete(TEXT, each) for each in params]
    return [
        [
            (one.token_ids, one.text, one.finish_reason, one.stop_reason, one.logprobs, output.prompt_logprobs)
            for one in output.outputs
        ]
        for output in outputs
    ]


def test_seeded_results_are_the_same_alone_in_company_and_when_preempted(client: Client, tight_client: Client) -> None:
    alone = answers(client, at_once=False)
    assert answers(client, at_once=True) == alone
    assert answers(tight_client, at_once=True) == alone
    assert read_metrics(METRICS_PORT)['pagewire_preemptions_total{group="0"}'] > 0


def test_log_probabilities_of_the_whole_vocabulary(client: Client, tight_client: Client) -> None:
    vocab_size = tight_client.get_model().vocab_size
    assert tight_client.get_model().max_logprobs == vocab_size
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=-1, prompt_logprobs=-1)
    output = tight_client.complete(TEXT, params)
    positions = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    assert len(positions) == len(output.prompt_token_ids) - 1 + 4
    for entries in positions:
        assert entries.keys() == set(range(vocab_size))
        assert sum(math.exp(entry.logprob) for entry in entries.values()) == pytest.approx(1.0, abs=1e-4)
    # Those of the servers that return a few.
    few = client.complete(TEXT, SamplingParams(temperature=0.0, max_tokens=4, logprobs=5)).outputs[0]
    for few_entries, entries in zip(few.logprobs, output.outputs[0].logprobs, strict=True):
        assert {token: pytest.approx(entries[token].logprob) for token in few_entries} == {
            token: entry.logprob for token, entry in few_entries.items()
        }
    for wrong in (SamplingParams(logprobs=-1), SamplingParams(logprobs=21), SamplingParams(prompt_logprobs=-1)):
        with pytest.raises(InvalidRequest, match="accepted: 0 to 20"):
            client.complete(TEXT, wrong)
    with pytest.raises(InvalidRequest, match=f"accepted: -1 to {vocab_size}"):
        tight_client.complete(TEXT, SamplingParams(logprobs=vocab_size + 1))


@pytest.mark.slow
def test_128_sequences_survive_the_loss_of_their_shard(model: Path, client: Client) -> None:
    params = SamplingParams(n=128, seed=8, max_tokens=30, ignore_eos=True, temperature=1.0, min_p=0.001)
    expected = [sequence.token_ids for sequence in client.complete(TEXT, params).outputs]
    with serve(model, "--max-num-seqs", str(MAX_NUM_SEQS), "--metrics-port", "0") as service:
        with Client(service.wait_ready(), timeout_s=120) as served:
            tokens: list[list[int]] = [[] for _ in expected]
            for num_events, event in enumerate(served.generate(TEXT, params)):
                if isinstance(event, TokenDelta):
                    tokens[event.index] += event.token_ids
                if num_events in (20, 200):
                    (pid,) = service.children("pagewire_shard")
                    os.kill(pid, signal.SIGKILL)
    assert tokens == expected
