"""Flags of the subcommands that sample, and what they say."""

import argparse

from pagewire.sampling_params import SamplingParams
from pagewire.text import from_command_line


def add_sampling_flags(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Adds how to sample. Those not given leave no trace: SamplingParams has the defaults."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-tokens", type=int, metavar="N", default=max_tokens, help="most tokens to generate (default: %(default)s)"
    )
    numbers: tuple[tuple[str, type, str], ...] = (
        ("--temperature", float, "0 is greedy (default: 1)"),
        ("--top-p", float, "keep the smallest set of tokens with this probability (default: 1)"),
        ("--top-k", int, "keep the k most probable tokens (default: all)"),
        ("--min-p", float, "keep tokens this times as probable as the best (default: 0)"),
        ("--presence-penalty", float, "of tokens that have been generated (default: 0)"),
        ("--frequency-penalty", float, "of tokens, for each time they have been generated (default: 0)"),
        ("--repetition-penalty", float, "of tokens in prompt or output (default: 1)"),
        ("--seed", int, "makes the sample reproducible"),
        ("--min-tokens", int, "tokens before the end may come (default: 0)"),
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


def sampling_params_from(args: argparse.Namespace) -> SamplingParams:
    """The sampling parameters that parsed arguments describe.

    Raises:
        InvalidRequest: one is out of range.
    """
    names = SamplingParams.__dataclass_fields__
    return SamplingParams(**{name: value for name, value in vars(args).items() if name in names})
