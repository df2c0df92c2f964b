"""Flags that describe a request: which model, how urgent, and how to sample."""

import argparse
from typing import Any

from pagewire.sampling_params import SamplingParams
from pagewire.text import from_command_line

_REQUEST_OPTIONS = ("model", "priority", "cache_salt")


def add_request_flags(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Adds the flags. Those that are not given set no attribute: the client and SamplingParams have the defaults."""
    _add_request_options(parser.add_argument_group("request"))
    _add_sampling(parser.add_argument_group("sampling"), max_tokens)


def _add_request_options(group: argparse._ArgumentGroup) -> None:
    suppress = argparse.SUPPRESS
    group.add_argument(
        "--model", metavar="NAME", default=suppress, help="the served model's name; refused if another one is served"
    )
    group.add_argument("--priority", type=int, metavar="N", default=suppress, help="lower runs first (default: 0)")
    group.add_argument(
        "--cache-salt",
        metavar="TEXT",
        default=suppress,
        help="share cached prefixes only with requests of the same salt (default: none)",
    )


def _add_sampling(group: argparse._ArgumentGroup, max_tokens: int) -> None:
    group.add_argument(
        "--max-tokens", type=int, metavar="N", default=max_tokens, help="most tokens to generate (default: %(default)s)"
    )
    numbers: tuple[tuple[str, type, str], ...] = (
        ("--temperature", float, "0 is greedy (default: 1)"),
        ("--top-p", float, "keep the smallest set of tokens with this probability (default: 1)"),
        ("--top-k", int, "keep the k most probable tokens (default: all)"),
        ("--min-p", float, "keep tokens at least this times as probable as the most probable (default: 0)"),
        ("--presence-penalty", float, "penalty of tokens that have been generated (default: 0)"),
        ("--frequency-penalty", float, "penalty of tokens for each time they have been generated (default: 0)"),
        ("--repetition-penalty", float, "penalty of tokens in prompt or output (default: 1)"),
        ("--seed", int, "makes the sample reproducible"),
        ("--min-tokens", int, "tokens to generate before the sequence may end (default: 0)"),
    )
    for flag, kind, text in numbers:
        group.add_argument(flag, type=kind, metavar="N", default=argparse.SUPPRESS, help=text)
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        type=from_command_line,
        default=argparse.SUPPRESS,
        help="end at this text; may be repeated",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", default=argparse.SUPPRESS, help="go on after the end-of-sequence token"
    )


def request_options_from(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of Client.generate and Client.complete that were given."""
    return {name: getattr(args, name) for name in _REQUEST_OPTIONS if hasattr(args, name)}


def sampling_params_from(args: argparse.Namespace) -> SamplingParams:
    """Returns the sampling parameters that parsed arguments describe.

    Raises:
        InvalidRequest: one is out of range.
    """
    names = SamplingParams.__dataclass_fields__
    return SamplingParams(**{name: value for name, value in vars(args).items() if name in names})
