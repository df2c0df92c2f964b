"""`pagewire bench` measures servers over HTTP as it does over gRPC."""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from pagewire.cli import main


def bench(tmp_path: Path, *words: str) -> dict[str, object]:
    path = tmp_path / "result.json"
    command = ["bench", "--num-prompts", "6", "--random-input-len", "20", "--random-output-len", "7", "--seed", "3"]
    assert main([*command, *words, "--random-vocab-size", "100", "--save-result", str(path), "--save-detailed"]) == 0
    result: dict[str, object] = json.loads(path.read_text())
    return result


@pytest.fixture(params=["openai", "vllm", "openai-chat"])
def backend(request: pytest.FixtureRequest, http_url: str) -> tuple[str, ...]:
    return ("--backend", request.param, "--base-url", http_url)


def test_every_token_of_a_load_is_counted(backend: tuple[str, ...], tmp_path: Path) -> None:
    result = bench(tmp_path, *backend, "--max-concurrency", "3", "--num-warmups", "1", "--goodput", "ttft:60000")
    assert (result["backend"], result["completed"], result["failed"]) == (backend[1], 6, 0)
    assert result["output_lens"] == [7] * 6
    assert all(length >= 20 for length in result["input_lens"]) or "chat" in backend[1]  # type: ignore[attr-defined]
    assert result["request_goodput"] == result["request_throughput"]
    assert all(itls for itls in result["itls"])  # type: ignore[attr-defined]
    assert result["max_concurrent_requests"] == 3


def test_agents_find_their_conversations_in_the_cache(backend: tuple[str, ...], tmp_path: Path) -> None:
    words = ("--dataset-name", "agent", "--num-turns", "3", "--prefix-len", "64", "--num-prefixes", "1")
    result = bench(tmp_path, *backend, *words, "--max-concurrency", "2", "--client-processes", "2")
    assert (result["num_prompts"], result["completed"], result["failed"]) == (6, 18, 0)
    lengths = result["input_lens"]
    assert isinstance(lengths, list)
    for session in range(0, 18, 3):
        first, second, third = lengths[session : session + 3]
        assert first + 7 + 15 <= second <= third - 15 - 7 or "chat" in backend[1]
    assert result["total_cached_tokens"] > 12 * 64  # type: ignore[operator]


def test_agents_over_grpc_too(cluster: Cluster, tmp_path: Path) -> None:
    words = ("--dataset-name", "agent", "--num-turns", "2", "--prefix-len", "32", "--turn-delay", "0.01")
    result = bench(tmp_path, "--server", cluster.address, *words)
    assert (result["backend"], result["completed"]) == ("pagewire", 12)
    assert result["input_lens"] == [52, 52 + 7 + 20] * 6
