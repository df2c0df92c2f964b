"""Flags that describe a request: which model, how urgent, and how to sample."""

import argparse
import json
from pathlib import Path
from typing import Any

from pagewire.errors import InvalidRequest
from pagewire.parameter_table import PARAMETERS, Kind, Parameter
from pagewire.sampling_params import SamplingParams
from pagewire.structured_outputs import StructuredOutputsParams
from pagewire.text import from_command_line

_REQUEST_OPTIONS = ("model", "priority", "cache_salt")
_WITHOUT_FLAG = frozenset(("n", "logprobs", "prompt_logprobs", "detokenize"))
"""Parameters that mean nothing to commands which print one text; those that print several add theirs."""


def add_request_flags(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Adds the flags. Those that are not given set no attribute: the client and SamplingParams have the defaults."""
    _add_request_options(parser.add_argument_group("request"))
    group = parser.add_argument_group("sampling")
    shown = SamplingParams.__dataclass_fields__.keys() - _WITHOUT_FLAG
    for parameter in PARAMETERS:
        if parameter.name in shown:
            _add_parameter(group, parameter, max_tokens)
    _add_constraints(parser.add_argument_group("structured output", "at most one of these"))


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


def _add_parameter(group: argparse._ArgumentGroup, parameter: Parameter, max_tokens: int) -> None:
    """Adds the flag of a sampling parameter: --ignore-eos, --top-k N, --stop TEXT, --logit-bias ID=BIAS."""
    flag, kind = "--" + parameter.name.replace("_", "-"), parameter.kind
    meaning = parameter.meaning[0].lower() + parameter.meaning[1:].rstrip(".").replace("%", "%%")
    add, suppress = group.add_argument, argparse.SUPPRESS
    if kind is Kind.BOOL:
        positive = not parameter.default
        name = flag if positive else "--no-" + flag.removeprefix("--")
        what = meaning if positive else f"not: {meaning}"
        add(name, dest=parameter.name, action="store_true" if positive else "store_false", default=suppress, help=what)
    elif parameter.name == "max_tokens":
        add(flag, type=int, metavar="N", default=max_tokens, help=f"{meaning} (default: %(default)s)")
    elif kind in (Kind.INT, Kind.FLOAT):
        number = int if kind is Kind.INT else float
        default = parameter.default_text.replace("the router picks one and reports it in Started", "random")
        add(flag, type=number, metavar="N", default=suppress, help=f"{meaning} (default: {default})")
    elif kind is Kind.TEXTS:
        what = f"{meaning}; may be repeated"
        add(flag, action="append", metavar="TEXT", type=from_command_line, default=suppress, help=what)
    elif kind is Kind.TOKEN_IDS:
        add(flag, type=_token_ids, metavar="ID,...", default=suppress, help=meaning)
    elif kind is Kind.BIASES:
        add(flag, type=_biases, metavar="ID=BIAS,...", default=suppress, help=meaning)
    elif kind is Kind.OBJECT:
        add(flag, type=_object, metavar="JSON", default=suppress, help=meaning)


def _add_constraints(group: argparse._ArgumentGroup) -> None:
    """Adds the flags that make structured_outputs."""
    add, suppress, text = group.add_argument, argparse.SUPPRESS, from_command_line
    add("--json-schema", metavar="FILE", default=suppress, help="the output is JSON that matches the schema in a file")
    add("--json-object", action="store_true", default=suppress, help="the output is a JSON object")
    add("--regex", metavar="PATTERN", type=text, default=suppress, help="the output matches a regular expression")
    what = "the output is one of the texts given with this flag; may be repeated"
    add("--choice", action="append", metavar="TEXT", type=text, default=suppress, help=what)
    add("--grammar", metavar="FILE", default=suppress, help="the output matches the grammar in a file, Lark's or EBNF")


def _constraint_from(args: argparse.Namespace) -> dict[str, Any]:
    """Returns structured_outputs as the flags say, or nothing. Raises InvalidRequest for a file that is not there."""
    flags = {"json_schema": "json", "json_object": "json_object", "regex": "regex", "choice": "choice"}
    given = {name: getattr(args, flag) for flag, name in {**flags, "grammar": "grammar"}.items() if hasattr(args, flag)}
    for name in ("json", "grammar"):
        if name in given:
            given[name] = _read(name, given[name])
    return {"structured_outputs": StructuredOutputsParams(**given)} if given else {}


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8"
        raise InvalidRequest.of_field(f"sampling_params.structured_outputs.{name}", f"{path}: {reason}") from None


def _token_ids(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def _object(words: str) -> dict[str, Any]:
    value = json.loads(words)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _biases(words: str) -> dict[int, float]:
    pairs = [word.split("=") for word in words.split(",")]
    return {int(token_id): float(bias) for token_id, bias in pairs}


def request_options_from(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of Client.generate and Client.complete that were given."""
    return {name: getattr(args, name) for name in _REQUEST_OPTIONS if hasattr(args, name)}


def sampling_params_from(args: argparse.Namespace) -> SamplingParams:
    """Returns the sampling parameters that parsed arguments describe.

    Raises:
        InvalidRequest: one is out of range.
    """
    return SamplingParams(**given_parameters(args))


def given_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the sampling parameters among parsed arguments, by name."""
    names = SamplingParams.__dataclass_fields__
    given = {name: value for name, value in vars(args).items() if name in names}
    return {**given, **_constraint_from(args)}
