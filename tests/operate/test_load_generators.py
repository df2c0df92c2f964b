"""Other people's load generators on a served model: every request succeeds, and the tokens they count are exact."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import read_metrics
from http_clients import DEMO_FOLDER, MODEL, Server, demo_server
from operate_tools import OPERATE, require_tool, set_up

pytestmark = pytest.mark.operate
NUM_REQUESTS = 24
NUM_OUTPUT_TOKENS = 16
PROMPT_TOKENS = 'pagewire_tokens_total{group="0",kind="prompt_computed"}'
CACHED_TOKENS = 'pagewire_tokens_total{group="0",kind="prompt_cached"}'
OUTPUT_TOKENS = 'pagewire_tokens_total{group="0",kind="generation"}'


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with demo_server() as server:
        yield server


def tool_of(environment: str, command: str) -> Path:
    """A command of an environment that tools/operate/ installs."""
    set_up(environment)
    return require_tool(OPERATE / environment / "venv" / "bin" / command)


def counted(server: Server) -> tuple[int, int]:
    """(tokens of prompts, tokens of outputs) that the server has counted."""
    page = read_metrics(server.metrics_port)
    return int(page[PROMPT_TOKENS] + page[CACHED_TOKENS]), int(page[OUTPUT_TOKENS])


def run(command: list[Any], server: Server) -> tuple[int, int]:
    """Runs a load generator; returns what the server counted meanwhile."""
    before = counted(server)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return counted(server)[0] - before[0], counted(server)[1] - before[1]


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_vllm_s_bench(backend: str, server: Server, tmp_path: Path) -> None:
    path = "/v1/completions" if backend == "openai" else "/v1/chat/completions"
    prompts, outputs = run(
        [
            *(tool_of("vllm_bench", "vllm"), "bench", "serve", "--backend", backend, "--base-url", server.url),
            *("--endpoint", path, "--model", MODEL, "--tokenizer", DEMO_FOLDER, "--dataset-name", "random"),
            *("--random-input-len", 32, "--random-output-len", NUM_OUTPUT_TOKENS, "--num-prompts", NUM_REQUESTS),
            *("--max-concurrency", 8, "--num-warmups", 0, "--ignore-eos", "--disable-tqdm"),
            *("--save-result", "--result-dir", tmp_path, "--result-filename", "result.json"),
        ],
        server,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (NUM_REQUESTS, 0)
    assert result["total_output_tokens"] == outputs == NUM_REQUESTS * NUM_OUTPUT_TOKENS
    assert result["total_input_tokens"] == prompts >= NUM_REQUESTS * 32


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_guidellm(path: str, server: Server, tmp_path: Path) -> None:
    prompts, outputs = run(
        [
            *(tool_of("guidellm", "guidellm"), "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={server.url},model={MODEL},request_format={path}"),
            *("--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
            *("--tokenizer", f"kind=hf_auto,model={DEMO_FOLDER}"),
            *("--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={NUM_OUTPUT_TOKENS}"),
            *("--output", f"kind=json,path={tmp_path / 'result.json'}"),
        ],
        server,
    )
    (benchmark,) = json.loads((tmp_path / "result.json").read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    assert outputs == NUM_REQUESTS * NUM_OUTPUT_TOKENS
    # On a busy machine guidellm ends before it has counted its last answer.
    num_counted = metrics["request_totals"]["successful"]
    assert NUM_REQUESTS - 1 <= num_counted <= NUM_REQUESTS
    totals = {"successful": num_counted, "errored": 0, "incomplete": 0, "total": num_counted}
    assert metrics["request_totals"] == totals
    assert round(metrics["output_token_count"]["successful"]["total_sum"]) == num_counted * NUM_OUTPUT_TOKENS
    if num_counted == NUM_REQUESTS:
        assert round(metrics["prompt_token_count"]["successful"]["total_sum"]) == prompts
