"""The command: its options, its life from start to signal, and what it imports."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from pagewire_router.cli import parse_config, serve
from pagewire_router.config import RouterConfig
from pagewire_router.errors import Unavailable


def config_of(line):
    return parse_config(line.split())


def test_options_make_the_configuration():
    config = config_of(
        "--shards a:1,b:2 --port 0 --host 127.0.0.1 --metrics-port 0 --max-queued-requests 5 --max-queued-tokens 6 "
        "--max-inflight 3 --coalesce-max-ms 0 --drain-grace 7 --exit-with-parent"
    )
    assert config.shards == ("a:1", "b:2")
    assert config.listen == "127.0.0.1:0"
    assert (config.max_queued_requests, config.max_queued_tokens, config.max_inflight) == (5, 6, 3)
    assert (config.metrics_port, config.coalesce_max_ms, config.drain_grace_s) == (0, 0, 7)
    assert config.exit_with_parent
    config = config_of(
        "--shards dns:///s:5,[::1]:6 --health-port 0 --max-request-time 60 --api-keys k --tls-cert c --tls-key d "
        "--tls-client-ca e --shard-tls-ca f --shard-tls-cert g --shard-tls-key h"
    )
    assert config.shards == ("dns:///s:5", "[::1]:6")
    assert (config.generation_config, config.max_logprobs) == ("auto", 20)
    sampling = config_of("--shards a:1 --generation-config vllm --max-logprobs -1")
    assert (sampling.generation_config, sampling.max_logprobs) == ("vllm", -1)
    waits = config_of("--shards a:1 --step-timeout 9 --shard-wait 0")
    assert (waits.step_timeout_s, waits.shard_wait_s) == (9, 0)
    assert (config.health_port, config.max_request_time_s, config.api_keys) == (0, 60, "k")
    assert (config.tls_cert, config.tls_key, config.tls_client_ca) == ("c", "d", "e")
    assert (config.shard_tls_ca, config.shard_tls_cert, config.shard_tls_key) == ("f", "g", "h")
    parsers = config_of("--shards a:1 --tool-call-parser hermes --reasoning-parser deepseek_r1")
    assert (parsers.tool_call_parser, parsers.reasoning_parser) == ("hermes", "deepseek_r1")
    assert config_of("--shards a:1 --listen unix:/tmp/x").listen == "unix:/tmp/x"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--shards , --port 1",
        "--shards a:1 --listen x:1 --port 1",
        "--shards a:1 --max-inflight 9",
        "--shards a:1 --max-queued-requests 0",
        "--shards a:1 --port 70000",
        "--shards a:1 --coalesce-max-ms -1",
        "--shards a:1 --drain-grace nan",
        "--shards a:1 --max-request-time 0",
        "--shards a:1 --step-timeout 1",
        "--shards a:1 --tool-call-parser gpt5",
        "--shards a:1 --reasoning-parser gpt5",
        "--shards a:1 --shard-wait -1",
        "--shards a:1 --max-logprobs -2",
        "--shards a:1 --generation-config other",
        "--shards dns:///name",
        "--shards dns:///:5",
        "--shards dns:name:5",
        "--shards dns:///name:x",
        "--shards a:1 --tls-cert c",
        "--shards a:1 --tls-key k",
        "--shards a:1 --tls-client-ca a",
        "--shards a:1 --shard-tls-ca a --shard-tls-cert c",
        "--shards a:1 --shard-tls-cert c --shard-tls-key k",
    ],
)
def test_wrong_usage_is_refused(line, capsys):
    with pytest.raises(SystemExit) as caught:
        config_of(line)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


async def started_line(capsys):
    async with asyncio.timeout(5):
        while not (line := capsys.readouterr().out):
            await asyncio.sleep(0.01)
    return line


async def test_sigterm_drains_and_ends_well(new_runner, capsys):
    runner = new_runner()
    running = asyncio.create_task(serve(RouterConfig(shards=(), listen="127.0.0.1:0"), runner))
    line = await started_line(capsys)
    assert line.startswith("pagewire-router ready on 127.0.0.1:")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert runner.drained


async def test_an_error_at_start_is_one_line(new_runner, capsys):
    runner = new_runner()

    async def start():
        raise Unavailable("no shard answers at a:1")

    runner.start = start
    assert await serve(RouterConfig(shards=(), listen="127.0.0.1:0"), runner) == 1
    assert capsys.readouterr().err == "error: no shard answers at a:1\n"


async def test_a_broken_tokenizer_is_one_line(new_runner, capsys):
    runner = new_runner(files={"tokenizer.json": b"{"})
    assert await serve(RouterConfig(shards=(), listen="127.0.0.1:0"), runner) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: tiny: tokenizer.json cannot be read")
    assert error.count("\n") == 1


async def test_a_signal_before_the_shards_answer_ends_the_router(new_runner):
    runner = new_runner()
    runner.start = asyncio.Event().wait
    running = asyncio.create_task(serve(RouterConfig(shards=(), listen="127.0.0.1:0"), runner))
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


def test_the_router_loads_neither_torch_nor_transformers():
    code = (
        "import sys, pagewire_router.cli, pagewire_router.server, pagewire_router.text.tokenizer\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'jinja2', 'opentelemetry') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n"
