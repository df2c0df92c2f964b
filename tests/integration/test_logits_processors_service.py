"""Logits processors through real processes: a program's own class, every front, and a shard that dies."""

import concurrent.futures
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually, shards_and_router
from pagewire import Client, InvalidRequest, SamplingParams, ServerError
from processors import chained

FILE = Path(chained.__code__.co_filename)
PROGRAM = """
import sys
import torch
from pagewire import LLM, InvalidRequest, SamplingParams
from pagewire_shard.logits_processors import AdapterLogitsProcessor


class Only(AdapterLogitsProcessor):
    @classmethod
    def validate_params(cls, params):
        if not isinstance((params.extra_args or {}).get("only", 0), int):
            raise ValueError("only is no integer")

    def is_argmax_invariant(self):
        return False

    def new_req_logits_processor(self, params):
        only = (params.extra_args or {}).get("only")
        if only is None:
            return None

        def keep(output_ids, logits):
            kept = torch.full_like(logits, float("-inf"))
            kept[only + len(output_ids)] = logits[only + len(output_ids)]
            return kept

        return keep


def main():
    with LLM(sys.argv[1], device="cpu", cpu_threads=1, logits_processors=[Only]) as llm:
        each = [{"only": 70}, {"only": 90, "n": 2}, {}]
        params = [
            SamplingParams(max_tokens=4, n=args.pop("n", 1), logprobs=0, extra_args=args, ignore_eos=True)
            for args in each
        ]
        outputs = llm.generate(["Hello"] * 3, params, use_tqdm=False)
        print([list(one.token_ids) for output in outputs[:2] for one in output.outputs])
        assert len(outputs[2].outputs[0].token_ids) == 4
        assert max(outputs[0].outputs[0].logprobs[0][70].logprob, -99) < 0
        try:
            llm.generate("Hello", SamplingParams(extra_args={"only": "x"}), use_tqdm=False)
        except InvalidRequest as error:
            print(error)
        assert llm.generate("Hello", use_tqdm=False)[0].outputs[0].token_ids


if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_a_program_may_give_a_class_of_its_own(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, str(script), str(model)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    tokens, refusal = done.stdout.splitlines()
    assert json.loads(tokens) == [[70, 71, 72, 73], [90, 91, 92, 93], [90, 91, 92, 93]]
    assert refusal == "sampling_params.extra_args: only is no integer"


def test_arguments_without_processors_are_refused(client: Client, http_url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"sampling_params\.extra_args: .* no logits processors"):
        client.complete("Hello", SamplingParams(extra_args={"a": 1}))
    status, answer = post(http_url, {"prompt": "Hello", "vllm_xargs": {"a": 1}})
    assert (status, answer["error"]["param"]) == (400, "vllm_xargs")


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.slow
def test_a_lost_shard_and_every_front(model: Path) -> None:
    names = f"{FILE}:Failing,{FILE}:Chain"
    flags = ("--block-size", "16", "--kv-cache-memory", "64MiB", "--logits-processors", names)
    with shards_and_router(model, *flags, num_shards=2, router_flags=["--http-port", "0"]) as cluster:
        with Client(cluster.address, timeout_s=120) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
            url, vocab_size = f"http://{cluster.router.http_address()}", client.get_model().vocab_size
            params = SamplingParams(max_tokens=150, n=2, seed=3, ignore_eos=True, extra_args={"chain": 1})
            pending = [pool.submit(client.complete, f"prompt {i}", params) for i in range(8)]
            kill_while_running(cluster, client)
            for each in pending:
                check_chained(each.result(), vocab_size)
            body = {"prompt": "Hello", "max_tokens": 8, "vllm_xargs": {"chain": 1}, "return_token_ids": True}
            status, answer = post(url, body)
            assert status == 200
            [choice] = answer["choices"]
            assert choice["token_ids"] == expected(choice["prompt_token_ids"], 8, vocab_size)
            status, answer = post(url, {**body, "vllm_xargs": {"chain": "x"}})
            assert (status, answer["error"]["param"]) == (400, "vllm_xargs")
            assert "chain is no integer" in answer["error"]["message"]
            with pytest.raises(ServerError, match="a logits processor failed with RuntimeError"):
                client.complete("Hello", SamplingParams(extra_args={"fail_after": 2}))
            deep: dict[str, Any] = {}
            for _ in range(200):
                deep = {"a": deep}
            assert post(url, {**body, "vllm_xargs": deep})[0] == 400
            check_chained(client.complete("Hello", params), vocab_size)
            whole = cluster.num_blocks[1]
            eventually(lambda: cluster.free_blocks(1) == whole, "all blocks of the other shard are free")


def kill_while_running(cluster: Cluster, client: Client) -> None:
    events = client.generate("probe", SamplingParams(max_tokens=300, ignore_eos=True))
    for _ in range(10):
        next(events)
    cluster.shards[0].process.kill()
    eventually(lambda: cluster.shards[0].process.poll() is not None, "the shard is gone")
    events.close()


def check_chained(output: Any, vocab_size: int) -> None:
    assert len(output.outputs) == 2
    for one in output.outputs:
        assert list(one.token_ids) == expected(output.prompt_token_ids, 150, vocab_size)


def expected(prompt_ids: list[int], num_tokens: int, vocab_size: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(num_tokens):
        tokens.append(chained(prompt_ids, tokens, vocab_size))
    return tokens
