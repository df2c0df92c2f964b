"""What a shard takes on at a time: chosen from the device and the model, unless the configuration says it."""

from pathlib import Path

import pytest
import torch
import transformers
from pagewire_shard import startup
from pagewire_shard.config import ShardConfig
from pagewire_shard.errors import PoolTooSmall
from pagewire_shard.limits import CPU_CORE_FLOPS, Asked, DeviceFacts, ModelFacts, choose_limits, gpu_flops
from pagewire_shard.startup import build_engine

GIB = 1 << 30


def gpu(name: str, gib: float, num_sms: int, capability: tuple[int, int]) -> DeviceFacts:
    return DeviceFacts("cuda", name, int(gib * 0.9 * GIB), gpu_flops(num_sms, capability, 2))


def cpu(num_cores: int) -> DeviceFacts:
    """With a pool of 2 GiB and weights of 0.5 GiB."""
    return DeviceFacts("cpu", f"{num_cores} CPU threads", int(2.5 * GIB), num_cores * CPU_CORE_FLOPS)


H200 = gpu("H200", 140, 132, (9, 0))
H100 = gpu("H100", 79, 132, (9, 0))
A100 = gpu("A100", 79, 108, (8, 0))
A10 = gpu("A10", 23, 72, (8, 6))
L4 = gpu("L4", 22, 58, (8, 9))
RTX_3060_TI = gpu("RTX 3060 Ti", 8, 38, (8, 6))


def model(billions: float, kv_kib: int, max_model_len: int = 131_072, active: float | None = None) -> ModelFacts:
    """Of 16-bit weights."""
    return ModelFacts(int(billions * 2e9), kv_kib << 10, 2e9 * (active or billions), max_model_len)


LLAMA_1B = model(1.24, 32, active=0.97)
LLAMA_8B = model(8.03, 128, active=6.98)
QWEN_32B = model(32.8, 256, 40_960, active=31.2)
QWEN_30B_A3B = model(30.5, 96, 40_960, active=2.9)
# On a CPU the KV cache is float32.
LLAMA_110M = ModelFacts(GIB // 2, 72 << 10, 2 * 85e6, 2048)
LLAMA_8B_ON_CPU = ModelFacts(GIB // 2, 256 << 10, 2 * 6.98e9, 131_072)


@pytest.mark.parametrize(
    ("device", "served", "max_num_seqs", "max_num_batched_tokens"),
    [
        (H200, LLAMA_8B, 1024, 4096),
        (H200, LLAMA_1B, 1024, 8192),
        # 512 rows keep the device busy; the cache would hold 896 sequences.
        (H200, QWEN_32B, 512, 1024),
        (H200, QWEN_30B_A3B, 1024, 8192),
        (H100, LLAMA_8B, 1024, 4096),
        # The cache beside the weights holds 36,000 tokens.
        (H100, QWEN_32B, 256, 1024),
        (A100, LLAMA_8B, 1024, 2048),
        (A10, LLAMA_8B, 256, 512),
        (L4, LLAMA_1B, 624, 4096),
        (RTX_3060_TI, LLAMA_1B, 224, 2048),
        (cpu(2), LLAMA_110M, 256, 512),
        (cpu(64), LLAMA_110M, 256, 512),
        (cpu(2), LLAMA_8B_ON_CPU, 32, 64),
        (cpu(64), LLAMA_8B_ON_CPU, 112, 256),
    ],
    ids=lambda value: value.name if isinstance(value, DeviceFacts) else None,
)
def test_device_and_model_decide(
    device: DeviceFacts, served: ModelFacts, max_num_seqs: int, max_num_batched_tokens: int
) -> None:
    limits = choose_limits(Asked(), device, served)
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (max_num_seqs, max_num_batched_tokens)
    assert limits.block_size == (64 if device.kind == "cuda" else 16)
    assert limits.max_model_len == served.max_model_len


def test_what_is_asked_for_is_what_there_is() -> None:
    limits = choose_limits(Asked(7, 100, 32), H200, LLAMA_8B)
    assert (limits.max_num_seqs, limits.max_num_batched_tokens, limits.block_size) == (7, 100, 32)
    assert limits.line() == "max_num_seqs 7 (as given), max_num_batched_tokens 100 (as given), block_size 32 (as given)"


def test_what_is_left_open_follows_what_is_asked_for() -> None:
    assert choose_limits(Asked(max_num_batched_tokens=100), H200, LLAMA_8B).max_num_seqs == 48
    assert choose_limits(Asked(max_num_seqs=2000), A10, LLAMA_8B).max_num_batched_tokens == 2000
    assert choose_limits(Asked(kv_cache_memory_bytes=3 * GIB), H200, LLAMA_8B).max_num_seqs == 256


def test_rows_of_very_long_sequences_leave_the_memory_to_the_cache() -> None:
    limits = choose_limits(Asked(), H200, model(8, 16, max_model_len=4_000_000))
    assert limits.max_num_seqs * 4 * 4_000_000 <= H200.memory_bytes // 64
    assert "rows of 4,000,000 tokens" in limits.line()


@pytest.mark.parametrize("device", [H200, RTX_3060_TI, cpu(1)], ids=lambda device: device.name)
def test_there_is_a_choice_for_a_device_without_room(device: DeviceFacts) -> None:
    """The pool, which is measured, says what is missing."""
    limits = choose_limits(Asked(), device, model(1000, 128))
    assert limits.max_num_seqs == 1
    assert limits.max_num_batched_tokens == (512 if device.kind == "cuda" else 64)


def test_the_line_says_what_and_why() -> None:
    assert choose_limits(Asked(), H200, LLAMA_8B).line() == (
        "max_num_seqs 1024 (the most for a GPU), max_num_batched_tokens 4096 (about 0.12 s on H200), "
        "block_size 64 (for a GPU)"
    )


@pytest.mark.parametrize(
    ("num_sms", "capability", "element_bytes", "peak"),
    [(132, (9, 0), 2, 919e12), (108, (8, 0), 2, 376e12), (72, (8, 6), 2, 125e12), (60, (99, 0), 2, 418e12),
     (132, (9, 0), 4, 57e12)],
)  # fmt: skip
def test_half_of_a_gpu_s_peak_is_counted_on(
    num_sms: int, capability: tuple[int, int], element_bytes: int, peak: float
) -> None:
    assert gpu_flops(num_sms, capability, element_bytes) == pytest.approx(peak / 2, rel=0.01)


def test_a_start_says_its_limits_and_serves_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    options = {"device": "cpu", "load_format": "dummy", "cpu_threads": 1, "kv_cache_memory_bytes": 8 * GIB}
    info = build_engine(ShardConfig(model=str(tmp_path), model_name="m", **options), tmp_path, b"").info
    assert (info.max_num_seqs, info.max_num_batched_tokens, info.block_size) == (256, 512, 16)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("m: max_num_seqs 256 (the most for a CPU), max_num_batched_tokens 512 (about ")
    assert "block_size 16 (for a CPU); the KV cache holds 131,072 tokens; " in line
    assert line.endswith("weights and activations in float32")


def test_weights_that_do_not_fit_are_refused_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a GPU that is too small."""

    def load_model(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112.00 MiB.")

    monkeypatch.setattr(startup, "load_model", load_model)
    monkeypatch.setattr(startup, "_device", lambda config: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * GIB)
    with pytest.raises(
        PoolTooSmall, match=r"m: its weights do not fit.* 8,589,934,592 bytes, .* 7,516,192,768 free.*--dtype"
    ):
        build_engine(ShardConfig(model="m", model_name="m"), tmp_path, b"")
