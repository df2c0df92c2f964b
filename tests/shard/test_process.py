"""The process as its users meet it: command line, start errors, readiness, and how it ends."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pagewire.v1 import inference_pb2, shard_pb2, shard_pb2_grpc
from pagewire_common.protocol import PROTOCOL_MAJOR
from pagewire_common.sampling_params import with_defaults
from pagewire_shard.cli import build_parser, config_from, parse_size

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 2,
}
TIMEOUT_S = 180


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pagewire_shard", *arguments]


def run_to_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny-llama"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(TINY_LLAMA))
    return directory


@pytest.fixture
def shard_process(tiny_llama: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A shard with random weights, and its address."""
    arguments = ["--model", str(tiny_llama), "--load-format", "dummy", "--kv-cache-memory", "4MB", "--exit-with-parent"]
    process = subprocess.Popen(
        # These tests renew no lease.
        command(*arguments, "--device", "cpu", "--metrics-port", "0", "--lease-term", "600"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killer = threading.Timer(TIMEOUT_S, process.kill)
    killer.start()
    assert process.stdout is not None
    ready = process.stdout.readline()
    yield process, ready.removeprefix("pagewire-shard ready on ").strip()
    killer.cancel()
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "/no/such/model"], ["/no/such/model", "no such directory", "hub id"]),
        (["--model", "{tmp}"], ["config.json"]),
        (["--tp-size", "2"], ["--tp-size 2", "needs --rendezvous"]),
        (["--tp-size", "2", "--tp-rank", "2"], ["--tp-rank 2", "from 0 to", "1"]),
        (["--model", "{tiny}", "--load-format", "dummy", "--listen", "127.0.0.1:{taken}"], ["{taken}", "taken"]),
        (["--model", "{tiny}"], ["safetensors"]),
        (["--model", "{tiny}", "--load-format", "dummy", "--max-model-len", "9999"], ["9999", "128"]),
        (["--model", "{tiny}", "--load-format", "dummy", "--kv-cache-memory", "1KB"], ["--kv-cache-memory"]),
    ],
    ids=[
        "no-model",
        "no-config",
        "no-rendezvous",
        "no-such-rank",
        "port-taken",
        "no-weights",
        "too-long",
        "pool-too-small",
    ],
)
def test_an_error_at_start_is_one_line_and_status_1(tmp_path, tiny_llama, arguments, named):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        facts = {"tmp": tmp_path, "tiny": tiny_llama, "taken": taken.getsockname()[1]}
        result = run_to_end(*(argument.format(**facts) for argument in arguments), "--device", "cpu")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in named:
        assert part.format(**facts) in result.stderr


async def test_sigterm_drains(shard_process):
    process, address = shard_process
    async with grpc.aio.insecure_channel(address) as channel:
        stub = shard_pb2_grpc.ShardStub(channel)
        info = await stub.GetInfo(shard_pb2.GetInfoRequest())
        assert (info.model, info.max_model_len, info.vocab_size) == ("tiny-llama", 128, 64)
        call = stub.Execute()
        await call.write(
            shard_pb2.RouterMessage(hello=shard_pb2.Hello(router_id="r", protocol_major=PROTOCOL_MAJOR, max_inflight=3))
        )
        assert (await call.read()).WhichOneof("message") == "welcome"
        process.send_signal(signal.SIGTERM)
        while (await call.read()).WhichOneof("message") != "draining":
            pass
        assert process.poll() is None
        await call.write(shard_pb2.RouterMessage(goodbye=shard_pb2.Goodbye()))
        assert await call.code() == grpc.StatusCode.OK
    assert await asyncio.to_thread(process.wait, TIMEOUT_S) == 0
    assert "Traceback" not in process.stderr.read()


async def test_plans_run_the_model(shard_process):
    _, address = shard_process
    async with grpc.aio.insecure_channel(address) as channel:
        call = shard_pb2_grpc.ShardStub(channel).Execute()
        await call.write(shard_pb2.RouterMessage(hello=shard_pb2.Hello(protocol_major=PROTOCOL_MAJOR, max_inflight=3)))
        epoch = (await call.read()).welcome.epoch
        admit = shard_pb2.Admit(
            seq_id=1,
            token_ids=[5, 6, 7, 8, 9],
            num_prompt_tokens=5,
            sampling_params=with_defaults(inference_pb2.SamplingParams(temperature=0, seed=0)),
            stop=shard_pb2.StopConditions(max_tokens=3),
        )
        for step in (1, 2, 3):
            plan = shard_pb2.StepPlan(epoch=epoch, step=step, run_seq_ids=[1], run_token_budgets=[16])
            plan.admits.extend([admit] if step == 1 else [])
            await call.write(shard_pb2.RouterMessage(plan=plan))
        results: list[shard_pb2.StepResult] = []
        while len(results) < 3:
            message = await call.read()
            if message.WhichOneof("message") == "result":
                results.append(message.result)
        call.cancel()
    assert [list(result.num_known_tokens) for result in results] == [[6], [7], [8]]
    assert all(token < 64 for result in results for token in result.sampled_token_ids)
    assert [result.stop_reasons[0] for result in results] == [0, 0, shard_pb2.STOP_REASON_LENGTH]


def test_the_process_ends_with_its_parent(shard_process):
    process, _ = shard_process
    process.stdin.close()
    assert process.wait(TIMEOUT_S) == 0


def test_help_needs_no_torch():
    code = "import sys, pagewire_shard.cli as c; c.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT_S, check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1000", 1000), ("128MB", 128_000_000), ("2GiB", 2 << 30), ("1.5k", 1500), ("512 MiB", 512 << 20), ("7b", 7)],
)
def test_sizes_have_units(text, num_bytes):
    assert parse_size(text) == num_bytes


def test_a_bad_option_is_refused_by_name(capsys):
    with pytest.raises(SystemExit) as refused:
        build_parser().parse_args(["--kv-cache-memory", "lots"])
    assert refused.value.code != 0
    assert "--kv-cache-memory" in capsys.readouterr().err


def test_options_become_the_configuration(tiny_llama):
    config = config_from(build_parser().parse_args(["--model", str(tiny_llama), "--port", "7", "--lease-term", "2.5"]))
    assert (config.model_name, config.listen, config.lease_term_s) == ("tiny-llama", "127.0.0.1:7", 2.5)
    config = config_from(
        build_parser().parse_args(["--listen", "unix:/x", "--served-model-name", "n", "--kv-cache-memory", "1KiB"])
    )
    assert (config.model, config.model_name, config.listen) == ("demo", "n", "unix:/x")
    assert config.kv_cache_memory_bytes == 1024
