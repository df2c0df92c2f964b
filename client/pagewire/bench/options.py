"""The flags of `pagewire bench`. Where `vllm bench serve` has the same flag, it is spelled the same."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagewire.bench.metrics import ServiceLevel
from pagewire.cli.server_flags import add_server_flags

WORKLOADS = ("random", "shared-prefix", "agent", "file")
BACKENDS = ("pagewire", "openai", "vllm", "openai-chat")
LENGTHS: dict[str, dict[str, int]] = {
    "1k-1k": {"random_input_len": 1024, "random_output_len": 1024},
    "8k-1k": {"random_input_len": 8192, "random_output_len": 1024},
    "1k-8k": {"random_input_len": 1024, "random_output_len": 8192},
}
"""Values of --lengths."""
_ALSO = {"--random-input-len": ("--input-len",), "--random-output-len": ("--output-len",)}
"""Other names of flags, which `vllm bench serve` has too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    add_server_flags(parser)
    _add_http(parser.add_argument_group("servers over HTTP"))
    _add_workload(parser.add_argument_group("workload"))
    _add_arrivals(parser.add_argument_group("arrivals"))
    _add_decoding(parser.add_argument_group("decoding"))
    _add_report(parser.add_argument_group("report"))


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset-name",
        choices=WORKLOADS,
        default="random",
        help="random tokens; random tokens after a few shared prefixes; agents, whose every request continues the "
        "conversation of the one before it; or a file (default: %(default)s)",
    )
    group.add_argument(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        help='of --dataset-name file: *.jsonl with {"prompt": ...} or {"prompt_token_ids": ...}, else a text line each',
    )
    numbers: tuple[tuple[str, str, Callable[[str], float], float, str], ...] = (
        ("--num-prompts", "N", _positive_int, 100, "requests to send; of agent: sessions"),
        ("--random-input-len", "N", _positive_int, 128, "prompt tokens; behind a prefix; of agent: added by each turn"),
        ("--random-output-len", "N", _positive_int, 128, "tokens to generate"),
        ("--random-range-ratio", "R", _ratio, 0.0, "lengths vary uniformly between (1 - R) and (1 + R) times theirs"),
        ("--num-prefixes", "N", _positive_int, 10, "of shared-prefix and agent: different prefixes"),
        ("--prefix-len", "N", _positive_int, 256, "of shared-prefix and agent: tokens in a prefix"),
        ("--num-turns", "N", _positive_int, 8, "of agent: requests in a session"),
        ("--turn-delay", "S", float, 0.0, "of agent: seconds that tools take between two requests"),
        ("--seed", "N", int, 0, "of prompts, lengths and arrivals"),
    )
    group.add_argument(
        "--lengths", choices=LENGTHS, help="sets --random-input-len and --random-output-len, as 8k-1k: 8,192 and 1,024"
    )
    for flag, metavar, kind, default, text in numbers:
        words = (flag, *_ALSO.get(flag, ()))
        group.add_argument(*words, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default})")


def _add_http(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--backend",
        choices=BACKENDS,
        default="pagewire",
        help="API to measure: pagewire's over gRPC at --server, or OpenAI's at --base-url, where openai and vllm send "
        "completions and openai-chat conversations (default: %(default)s)",
    )
    group.add_argument("--base-url", default="http://localhost:8000", metavar="URL", help="(default: %(default)s)")
    group.add_argument("--endpoint", metavar="PATH", help="(default: /v1/completions or /v1/chat/completions)")
    group.add_argument("--model", metavar="NAME", help="(default: the first that /v1/models tells)")
    group.add_argument(
        "--random-vocab-size",
        type=_positive_int,
        default=4000,
        metavar="N",
        help="random token ids are below this, as servers over HTTP do not tell their vocabulary (default: 4000)",
    )
    group.add_argument(
        "--extra-body", type=_json_object, default={}, metavar="JSON", help="further fields of every request"
    )


def _add_arrivals(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--request-rate",
        type=_positive,
        default=float("inf"),
        metavar="R",
        help="requests per second, at random times; inf sends each as soon as --max-concurrency lets it (default: inf)",
    )
    group.add_argument(
        "--burstiness",
        type=_positive,
        default=1.0,
        metavar="B",
        help="shape of the gaps between requests: 1 Poisson, below in bursts, above steadier (default: 1)",
    )
    group.add_argument(
        "--max-concurrency", type=_positive_int, metavar="N", help="most requests to have open (default: no limit)"
    )
    group.add_argument(
        "--client-processes",
        type=_positive_int,
        metavar="N",
        help="processes to send from, which share the requests and --max-concurrency; if not given, one for every 256 "
        "open requests, at most one for every 4 cores",
    )
    group.add_argument(
        "--num-warmups", type=_count, default=0, metavar="N", help="requests to send before, unmeasured (default: 0)"
    )


def _add_decoding(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="generate all tokens that were asked for (default: yes)",
    )
    group.add_argument(
        "--detokenize", action=argparse.BooleanOptionalAction, default=True, help="ask for text too (default: yes)"
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--goodput",
        nargs="+",
        type=_service_level,
        default=[],
        metavar="METRIC:MS",
        help="also count requests that kept these bounds, such as ttft:500 tpot:50 e2el:5000",
    )
    group.add_argument(
        "--metric-percentiles",
        type=_percentiles,
        default=(50.0, 90.0, 99.0),
        metavar="P,P,...",
        help="percentiles to report (default: 50,90,99)",
    )
    group.add_argument("--save-result", type=Path, metavar="FILE", help="write the result as JSON")
    group.add_argument("--save-detailed", action="store_true", help="with every request in it")
    group.add_argument(
        "--metadata", nargs="+", type=_key_value, default=[], metavar="KEY=VALUE", help="to keep in the result"
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw latencies and the run over time as PNG")
    group.add_argument("--no-progress", "--disable-tqdm", action="store_true", help="show no progress bar")


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return value


def _percentiles(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not all(0 < value < 100 for value in values):
        raise argparse.ArgumentTypeError(f"must lie between 0 and 100, not {text}")
    return values


def _service_level(text: str) -> ServiceLevel:
    try:
        return ServiceLevel.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def _key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, not {text!r}")
    return key, value
