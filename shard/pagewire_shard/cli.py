"""pagewire-shard: serves one model on one device to routers.

Imports are late on purpose: help is instant, a wrong option is told before torch is loaded, and torch loads in the step
thread while the event loop starts.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, get_args

from pagewire_common.tracing.settings import trace_exporters

from pagewire_shard.config import Device, Dtype, LoadFormat, ShardConfig

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
DEFAULTS = ShardConfig(model="demo", model_name="demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM. An error at start is one line on standard error, and status 1."""
    arguments = build_parser().parse_args(argv)
    _set_library_defaults()
    if arguments.spare:
        from pagewire_shard.spare import wait_for_work

        work = wait_for_work()
        if work is None:
            return 0
        arguments = build_parser().parse_args(work)
    from pagewire_common.process_log import set_up_logging

    from pagewire_shard.errors import ModelError
    from pagewire_shard.process import run

    set_up_logging(arguments.log_level)
    try:
        return run(config_from(arguments))
    except ModelError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _set_library_defaults() -> None:
    """Variables that libraries read when they are loaded."""
    # The core logs a failed bind by itself, in many lines; the error says it in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Read by OpenMP when torch is loaded: threads that spin between kernels take the cores that router and client need.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # tiktoken would keep a copy of each file by its path, and take that when the file has changed.
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")


def config_from(arguments: argparse.Namespace) -> ShardConfig:
    """The configuration of a command line. Raises BadOption for what this shard does not serve."""
    from pagewire_shard.errors import BadOption
    from pagewire_shard.loading.model_source import model_name

    if not 0 <= arguments.tp_rank < arguments.tp_size:
        raise BadOption(f"--tp-rank {arguments.tp_rank}: must be from 0 to --tp-size - 1, {arguments.tp_size - 1}")
    if not 0 <= arguments.pp_rank < arguments.pp_size:
        raise BadOption(f"--pp-rank {arguments.pp_rank}: must be from 0 to --pp-size - 1, {arguments.pp_size - 1}")
    for flag, size in (("--tp-size", arguments.tp_size), ("--pp-size", arguments.pp_size)):
        if size > 1 and arguments.rendezvous is None:
            raise BadOption(f"{flag} {size} needs --rendezvous, the address where the ranks of the group meet")
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise BadOption("--tls-cert and --tls-key need each other")
    if arguments.tls_client_ca is not None and arguments.tls_cert is None:
        raise BadOption("--tls-client-ca needs --tls-cert")
    given = vars(arguments)
    fields = {name: given[name] for name in ShardConfig.__dataclass_fields__ if name in given}
    fields["model_name"] = arguments.model_name or model_name(arguments.model)
    if arguments.listen is None:
        fields["listen"] = f"127.0.0.1:{arguments.port}"
    fields["trace_exporters"] = trace_exporters(os.environ)
    return ShardConfig(**fields)


def parse_size(text: str) -> int:
    """Bytes from "1000000", "128MB" (10^6) or "2GiB" (2^30)."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; accepted are bytes, or a number with KB, MiB, GiB, ...")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not text.startswith("unix:") and not (host and port.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no address; accepted are HOST:PORT and unix:PATH")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="pagewire-shard",
        description="Serves one model on one device to routers.",
        allow_abbrev=False,
        argument_default=None,
    )
    _add_model_options(parser.add_argument_group("model"))
    _add_service_options(parser.add_argument_group("service"))
    _add_engine_options(parser.add_argument_group("engine"))
    _add_grammar_options(parser.add_argument_group("structured output"))
    _add_processor_options(parser.add_argument_group("code of your own"))
    return parser


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", default="demo", metavar="M", help='directory, hub id, or "demo" (default)')
    group.add_argument(
        "--served-model-name", dest="model_name", metavar="NAME", help="name that clients see (default: from --model)"
    )
    group.add_argument("--dtype", choices=get_args(Dtype), default=DEFAULTS.dtype, help="element type of weights")
    group.add_argument(
        "--load-format",
        choices=get_args(LoadFormat),
        default=DEFAULTS.load_format,
        help="auto (default): safetensors, or PyTorch files where there are none; safetensors: those alone; "
        "dummy: random weights",
    )
    group.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N", help="seeds dummy weights")
    group.add_argument(
        "--hf-overrides",
        type=_json_object,
        default=DEFAULTS.hf_overrides,
        metavar="JSON",
        help="fields that replace those of the model's config.json; objects are merged (default: none)",
    )
    group.add_argument(
        "--max-model-len",
        type=_positive,
        metavar="N",
        help="longest sequence (default: the model's, or what the KV cache holds if that is less)",
    )


def _add_service_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--port", type=int, default=0, metavar="P", help="serve on 127.0.0.1:P; 0 (default): any port")
    group.add_argument("--listen", metavar="ADDR", help="serve on HOST:PORT or unix:PATH, in place of --port")
    group.add_argument("--metrics-port", type=int, metavar="P", help="HTTP /metrics, /healthz, /readyz; 0: any port")
    group.add_argument("--health-port", type=int, metavar="P", help="gRPC health in plaintext; 0: any port")
    group.add_argument("--tls-cert", metavar="FILE", help="PEM certificate chain; read again when it changes")
    group.add_argument("--tls-key", metavar="FILE", help="PEM private key of --tls-cert")
    group.add_argument(
        "--tls-client-ca", metavar="FILE", help="PEM authorities of which routers must show a certificate"
    )
    group.add_argument("--group-id", default=DEFAULTS.group_id, metavar="ID", help="shards of one group share it")
    group.add_argument("--tp-rank", type=int, default=DEFAULTS.tp_rank, metavar="R", help="tensor-parallel rank")
    group.add_argument("--tp-size", type=_positive, default=DEFAULTS.tp_size, metavar="N", help="tensor-parallel size")
    group.add_argument("--pp-rank", type=int, default=DEFAULTS.pp_rank, metavar="R", help="pipeline stage, from 0")
    group.add_argument("--pp-size", type=_positive, default=DEFAULTS.pp_size, metavar="M", help="pipeline stages")
    group.add_argument(
        "--enable-expert-parallel", action=argparse.BooleanOptionalAction, default=DEFAULTS.enable_expert_parallel,
        help="give each rank some of a mixture's experts, in place of a part of every expert (default: a part)",
    )  # fmt: skip
    group.add_argument(
        "--rendezvous", type=_address, metavar="ADDR",
        help="where the ranks of a group meet: HOST:PORT or unix:PATH on which rank 0 listens",
    )  # fmt: skip
    group.add_argument(
        "--rendezvous-timeout", dest="rendezvous_timeout_s", type=_seconds, default=DEFAULTS.rendezvous_timeout_s,
        metavar="S", help="how long a rank waits for the others to come (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--group-watch", dest="group_watch_s", type=_seconds, default=DEFAULTS.group_watch_s, metavar="S",
        help="how long a rank may be silent before the others end for it (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--lease-term", dest="lease_term_s", type=_seconds, default=DEFAULTS.lease_term_s, metavar="S",
        help="a router that is silent for so long loses the shard (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--drain-grace", dest="drain_grace_s", type=_seconds, default=DEFAULTS.drain_grace_s, metavar="S",
        help="how long SIGTERM waits for the router to let go (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--stall-timeout", dest="stall_timeout_s", type=_seconds, default=DEFAULTS.stall_timeout_s, metavar="S",
        help="no progress for so long while work waits: not alive (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--flight-recorder", metavar="FILE",
        help="keep the last plans and results in FILE and FILE.1, for `pagewire replay`; prompts and answers are in "
        "them, as token ids (default: not kept)",
    )  # fmt: skip
    group.add_argument(
        "--flight-recorder-size", dest="flight_recorder_bytes", type=parse_size,
        default=DEFAULTS.flight_recorder_bytes, metavar="SIZE",
        help="most that both files take (default 64MiB)",
    )  # fmt: skip
    group.add_argument("--exit-with-parent", action="store_true", help="stop when standard input ends")
    group.add_argument(
        "--spare", action="store_true",
        help="only import what a shard needs, then take the other arguments from a line of standard input, as "
        '{"arguments": [...], "environment": {...}}; `pagewire serve` keeps such a process',
    )  # fmt: skip
    group.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="least severe messages to log",
    )


def _add_engine_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=get_args(Device), default=DEFAULTS.device, help="where to run")
    group.add_argument(
        "--max-num-seqs",
        type=_positive,
        metavar="N",
        help="sequences at a time (default: chosen from the device and the model)",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=_positive,
        metavar="N",
        help="tokens a step may compute (default: chosen from the device and the model)",
    )
    group.add_argument(
        "--block-size",
        type=_positive,
        metavar="N",
        help="tokens in a block of the KV cache (default: 64 on a GPU, 16 on a CPU)",
    )
    group.add_argument(
        "--kv-cache-memory",
        dest="kv_cache_memory_bytes",
        type=parse_size,
        metavar="SIZE",
        help="size of the KV cache, such as 2GiB (default: what a GPU has left, 2GiB on a CPU)",
    )
    group.add_argument(
        "--gpu-memory-utilization", type=float, default=DEFAULTS.gpu_memory_utilization, metavar="SHARE",
        help="share of the GPU's memory to use (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--cuda-graphs", action=argparse.BooleanOptionalAction, default=DEFAULTS.cuda_graphs,
        help="capture a GPU's steps as CUDA graphs (default)",
    )  # fmt: skip
    group.add_argument(
        "--cpu-threads",
        type=_positive,
        metavar="N",
        help="threads for CPU kernels (default: all cores, less one for a small model)",
    )


def _add_processor_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--logits-processors", type=_names, default=DEFAULTS.logits_processors, metavar="NAME,...",
        help="logits processors to run, in this order: MODULE:CLASS or FILE.py:CLASS (default: none)",
    )  # fmt: skip


def _add_grammar_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--structured-outputs", action=argparse.BooleanOptionalAction, default=DEFAULTS.structured_outputs,
        help="serve grammars (default), which takes up to a second at start for a large vocabulary",
    )  # fmt: skip
    group.add_argument(
        "--grammar-compile-timeout", dest="grammar_compile_timeout_s", type=_seconds,
        default=DEFAULTS.grammar_compile_timeout_s, metavar="S",
        help="longest time for compiling a grammar (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grammar-compile-memory", dest="grammar_compile_memory_bytes", type=parse_size,
        default=DEFAULTS.grammar_compile_memory_bytes, metavar="SIZE",
        help="most memory for compiling a grammar (default 512MiB)",
    )  # fmt: skip
    group.add_argument(
        "--grammar-cache-memory", dest="grammar_cache_memory_bytes", type=parse_size,
        default=DEFAULTS.grammar_cache_memory_bytes, metavar="SIZE",
        help="most memory of all compiled grammars, in use or kept for later requests (default 512MiB)",
    )  # fmt: skip
    group.add_argument(
        "--coerce-one-of", action="store_true",
        help="read oneOf of JSON schemas as anyOf where its options cannot be told apart (default: refuse it)",
    )  # fmt: skip
    group.add_argument(
        "--lenient-json-schemas", action="store_true",
        help="ignore keywords and formats of JSON schemas that are not supported (default: refuse them by name)",
    )  # fmt: skip
