"""The longest sequence where the KV cache cannot hold the model's own, and the memory that a pool is sized by."""

from pathlib import Path

import pytest
import torch
import transformers
from pagewire_shard import startup
from pagewire_shard.config import ShardConfig
from pagewire_shard.errors import PoolTooSmall
from pagewire_shard.host_memory import memory_limit_bytes
from pagewire_shard.startup import build_engine

MODEL_LEN = 4096
BYTES_PER_TOKEN = 2 * 2 * 2 * 8 * 4
"""Layers, key and value, heads, head size, float32."""


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MODEL_LEN,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    return tmp_path


def config(model_dir: Path, **options: object) -> ShardConfig:
    defaults = {"device": "cpu", "load_format": "dummy", "max_num_seqs": 4, "cpu_threads": torch.get_num_threads()}
    return ShardConfig(model=str(model_dir), model_name="m", **{**defaults, **options})


def test_the_context_is_lowered_to_what_the_pool_holds(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = build_engine(config(model_dir, kv_cache_memory_bytes=100 * BYTES_PER_TOKEN), model_dir, b"").info
    assert info.max_model_len == 96  # whole blocks of 16
    assert list(info.num_blocks) == [6]
    (message,) = caplog.messages
    assert all(word in message for word in ("96", str(MODEL_LEN), "--kv-cache-memory", "--max-model-len"))


def test_the_default_pool_lowers_the_context_too(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(startup, "memory_limit_bytes", lambda: 4 * 512 * BYTES_PER_TOKEN)
    assert build_engine(config(model_dir), model_dir, b"").info.max_model_len == 512
    assert "--gpu-memory-utilization" in caplog.text


def test_a_context_that_fits_is_the_model_s_own(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert build_engine(config(model_dir), model_dir, b"").info.max_model_len == MODEL_LEN
    assert not caplog.messages


def test_a_context_that_was_asked_for_is_not_lowered(model_dir: Path) -> None:
    asked = config(model_dir, kv_cache_memory_bytes=100 * BYTES_PER_TOKEN, max_model_len=200)
    with pytest.raises(PoolTooSmall, match=r"--kv-cache-memory \d+ or --max-model-len 96"):
        build_engine(asked, model_dir, b"")


def test_a_pool_without_a_block_is_refused(model_dir: Path) -> None:
    with pytest.raises(PoolTooSmall, match="--kv-cache-memory"):
        build_engine(config(model_dir, kv_cache_memory_bytes=BYTES_PER_TOKEN), model_dir, b"")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "7000\n"}, 7000),
        ("0::/a/b\n", {"a/b/memory.max": "5000\n", "a/memory.max": "7000\n"}, 5000),
        ("0::/\n", {"memory.max": "3000\n"}, 3000),
        ("0::/of/the/host\n", {"memory.max": "3000\n"}, 3000),
        ("5:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4000\n"}, 4000),
        ("5:memory:/a\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("0::/a\n", {}, None),
    ],
)
def test_a_container_s_memory_limit_counts(
    tmp_path: Path, own: str, files: dict[str, str], expected: int | None
) -> None:
    for name, content in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(content)
    (tmp_path / "cgroup").write_text(own)
    unlimited = memory_limit_bytes(tmp_path / "nothing", tmp_path / "nothing")
    assert memory_limit_bytes(tmp_path / "fs", tmp_path / "cgroup") == (expected or unlimited)
