import argparse
from dataclasses import fields

import pytest
from pagewire import InvalidRequest
from pagewire.cli.serve import add_arguments, config_from
from pagewire.serve.commands import router_command, shard_command
from pagewire.serve.config import ServeConfig
from pagewire.serve.options import MODEL_OPTIONS, parse_bytes
from pagewire.serve.sockets import private_directory
from pagewire_shard.cli import build_parser as shard_parser


def parse(*words: str) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return config_from(parser.parse_args(words))


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("1000000", 10**6),
        ("512MB", 512 * 10**6),
        ("2GiB", 2 << 30),
        ("2gib", 2 << 30),
        ("1.5 KiB", 1536),
        ("3G", 3 * 10**9),
        ("1Ti", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes_have_decimal_and_binary_units(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2XB", "1e9", "two"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="size"):
        parse_bytes(text)


def test_no_arguments_mean_the_defaults():
    assert parse() == ServeConfig()


def test_every_field_has_a_flag():
    config = parse(
        *("model-dir", "--served-model-name", "m", "--host", "::1", "--port", "0", "--metrics-port", "1"),
        *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"),
        *("--enable-expert-parallel", "--replicas", "3", "--device", "cpu", "--dtype", "float16"),
        *("--max-model-len", "4", "--max-num-seqs", "5", "--max-num-batched-tokens", "6", "--block-size", "8"),
        *("--kv-cache-memory", "1KiB", "--no-cuda-graphs", "--load-format", "dummy", "--seed", "9"),
        *(
            "--gpu-memory-utilization",
            "0.5",
            "--cpu-threads",
            "2",
            "--drain-grace",
            "1.5",
            "--exit-with-parent",
            "--uds",
            "/s",
            "--private-socket",
        ),
        *("--health-port", "3", "--max-request-time", "2.5", "--api-keys", "k", "--trust-request-chat-template"),
        *("--jwt-jwks", "j", "--jwt-issuer", "i", "--jwt-audience", "a", "--client-limits", "l"),
        *("--step-timeout", "9", "--shard-wait", "4", "--generation-config", "vllm", "--max-logprobs", "-1"),
        *(
            "--http-port",
            "2",
            "--http-max-body-bytes",
            "9",
            "--http-max-connections",
            "8",
            "--http-cors-origin",
            "*",
            "--no-http-page",
        ),
        *("--tls-cert", "c", "--tls-key", "d", "--tls-client-ca", "e"),
        *("--tool-call-parser", "hermes", "--reasoning-parser", "qwen3", "--hf-overrides", '{"a": 1}'),
        *(
            "--logits-processors",
            "a:B",
            "--no-structured-outputs",
            "--coerce-one-of",
            "--lenient-json-schemas",
            "--grammar-compile-timeout",
            "1.5",
        ),
        *("--grammar-compile-memory", "64MiB", "--grammar-cache-memory", "1GiB"),
        *("--no-spare-shards", "--flight-recorder", "f"),
    )
    changed = [field.name for field in fields(ServeConfig) if getattr(config, field.name) != field.default]
    # GPUs are what CUDA_VISIBLE_DEVICES and the driver say.
    assert changed == [field.name for field in fields(ServeConfig) if field.name != "gpus"]
    assert config.kv_cache_memory_bytes == 1024


def test_vllm_s_flags_are_taken(capsys):
    config = parse(
        *("m", "--dtype", "half", "--max-model-len", "32k", "--enforce-eager", "--data-parallel-size", "2"),
        *(
            "--kv-cache-memory-bytes",
            "1024",
            "--ssl-certfile",
            "c",
            "--ssl-keyfile",
            "k",
            "--load-format",
            "safetensors",
        ),
        *("--allowed-origins", '["https://a.example"]', "--enable-prefix-caching", "--tensor-parallel-size", "2"),
    )
    assert config == ServeConfig(
        *("m",),
        dtype="float16",
        max_model_len=32_000,
        cuda_graphs=False,
        replicas=2,
        kv_cache_memory_bytes=1024,
        tls_cert="c",
        tls_key="k",
        load_format="safetensors",
        http_cors_origins=("https://a.example",),
        tensor_parallel_size=2,
        gpus=config.gpus,
    )
    assert capsys.readouterr().err == ""
    parse("--swap-space", "4", "--trust-remote-code", "--enable-auto-tool-choice", "--no-enable-chunked-prefill", "m")
    assert capsys.readouterr().err == (
        "pagewire: without effect here: --swap-space, --trust-remote-code, --enable-chunked-prefill, "
        "--enable-auto-tool-choice\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--api-key", "secret"), "--api-keys FILE"),
        (("--quantization", "awq"), "quantization"),
        (("--no-enable-prefix-caching",), "enable_prefix_caching"),
        (("--lora-modules", "a=b"), "adapters are not served"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else None,
)
def test_vllm_s_flags_that_are_not_served_are_refused_by_name(words, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        parse(*words)
    assert "secret" not in str(refused.value)


def test_options_are_fields_of_the_configuration():
    names = {field.name for field in fields(ServeConfig)}
    assert {option.dest or option.name for option in MODEL_OPTIONS} <= names


def test_addresses():
    assert parse("--port", "7").listen == "127.0.0.1:7"
    assert parse("--host", "::", "--port", "7").listen == "[::]:7"
    assert parse("--uds", "/tmp/s").listen == "unix:/tmp/s"


def test_a_private_socket_has_no_metrics_port_unless_asked_for():
    assert parse().metrics_port == 9400
    assert parse("--uds", "/tmp/s").metrics_port is None
    assert parse("--private-socket").metrics_port is None
    assert parse("--uds", "/tmp/s", "--metrics-port", "0").metrics_port == 0
    router = " ".join(router_command(parse("--private-socket"), ["unix:/a"], "unix:/d/pagewire.sock", "unix:/h"))
    assert "--metrics-socket /d/metrics.sock" in router


def test_http_is_served_beside_grpc_unless_that_is_a_socket():
    assert parse().http_port == 8000
    assert parse("--port", "0").http_port == 0
    assert parse("--port", "0", "--http-port", "7").http_port == 7
    assert parse("--no-http").http_port is None
    assert parse("--uds", "/tmp/s").http_port is None
    assert parse("--private-socket", "--http-port", "0").http_port == 0


@pytest.mark.parametrize("words", [("--block-size", "0"), ("--replicas", "x"), ("--dtype", "int8")])
def test_what_is_out_of_range_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words)
    assert words[0] in capsys.readouterr().err


def test_the_ranks_of_a_group_are_those_of_the_last_stage_first():
    config = ServeConfig(model="m", tensor_parallel_size=2, pipeline_parallel_size=2)
    places = []
    for rank in range(config.group_size):
        words = shard_command(config, 0, rank, "unix:/s", "unix:/r")
        assert words[words.index("--rendezvous") + 1] == "unix:/r"
        places.append(tuple(words[words.index(flag) + 1] for flag in ("--pp-rank", "--tp-rank")))
    assert places == [("1", "0"), ("1", "1"), ("0", "0"), ("0", "1")]


def test_the_command_lines_of_the_children():
    config = ServeConfig(model="m", max_num_seqs=4, kv_cache_memory_bytes=1024, metrics_port=0, http_port=0)
    shard = " ".join(shard_command(config, 1, 0, "unix:/s", "unix:/r")[1:])
    assert shard == (
        "-m pagewire_shard --model m --served-model-name m --listen unix:/s --group-id 1 --tp-rank 0 --tp-size 1 "
        "--device auto --dtype auto --load-format auto --seed 0 --drain-grace 30.0 --max-num-seqs 4 "
        "--kv-cache-memory 1024 --exit-with-parent"
    )
    router = " ".join(router_command(config, ["unix:/a", "unix:/b"], "h:1", "unix:/h")[1:])
    assert router == (
        "-m pagewire_router --shards unix:/a,unix:/b --listen h:1 --health-listen unix:/h --drain-grace 30.0 "
        "--http-port 0 --metrics-port 0 --exit-with-parent"
    )
    open_to_pages = parse("--http-cors-origin", "https://a.example", "--http-cors-origin", "https://b.example")
    router = " ".join(router_command(open_to_pages, ["unix:/a"], "h:1", "unix:/h"))
    assert "--http-cors-origin https://a.example --http-cors-origin https://b.example" in router
    secured = parse("--tls-cert", "c", "--tls-key", "d", "--tls-client-ca", "e", "--api-keys", "k", "--uds", "/s")
    bounded = parse("--step-timeout", "9", "--shard-wait", "0")
    router = " ".join(router_command(bounded, ["unix:/a"], "h:1", "unix:/h"))
    assert "--step-timeout 9.0 --shard-wait 0.0" in router
    named = parse("m", "--served-model-name", "n")
    assert "--model m --served-model-name n" in " ".join(shard_command(named, 0, 0, "unix:/s", "unix:/r"))
    grammars = parse("--grammar-compile-timeout", "1.5", "--grammar-cache-memory", "1KiB", "--lenient-json-schemas")
    shard = shard_parser().parse_args(shard_command(grammars, 0, 0, "unix:/s", "unix:/r")[3:])
    assert (shard.grammar_compile_timeout_s, shard.grammar_cache_memory_bytes) == (1.5, 1024)
    assert (shard.lenient_json_schemas, shard.coerce_one_of, shard.structured_outputs) == (True, False, True)
    assert "--no-structured-outputs" in shard_command(parse("--no-structured-outputs"), 0, 0, "unix:/s", "unix:/r")
    overridden = parse("--hf-overrides", '{"rope_scaling": {"factor": 2}}')
    shard = shard_parser().parse_args(shard_command(overridden, 0, 0, "unix:/s", "unix:/r")[3:])
    assert shard.hf_overrides == {"rope_scaling": {"factor": 2}}
    sampling = parse("--generation-config", "vllm", "--max-logprobs", "-1")
    assert "--generation-config vllm --max-logprobs -1" in " ".join(router_command(sampling, ["unix:/a"], "h:1", "h:2"))
    trusting = parse("--trust-request-chat-template")
    assert "--trust-request-chat-template" in router_command(trusting, ["unix:/a"], "h:1", "unix:/h")
    router = " ".join(router_command(secured, ["unix:/a"], "h:1", "unix:/h")[1:])
    assert "--tls-cert c --tls-key d --tls-client-ca e --api-keys k --exit-with-parent" in router


def test_a_long_temporary_directory_does_not_make_socket_paths_too_long(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with private_directory() as directory:
        assert len(directory) < 80


def test_each_shard_has_a_flight_recorder_of_its_own():
    config = ServeConfig(replicas=2, tensor_parallel_size=2, flight_recorder="/flights")
    commands = [shard_command(config, replica, rank, "unix:s", "unix:r") for replica in (0, 1) for rank in (0, 1)]
    files = {command[command.index("--flight-recorder") + 1] for command in commands}
    assert files == {f"/flights/shard-{place}.flight" for place in ("0-0", "0-1", "1-0", "1-1")}
    assert "--flight-recorder" not in shard_command(ServeConfig(), 0, 0, "unix:s", "unix:r")
