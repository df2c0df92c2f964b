"""The `pagewire` command: one module for each subcommand, imported only when it is asked for.

A subcommand's module has `add_arguments(parser)` and `run(args) -> exit status`.
"""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Command:
    module: str
    help: str

    @property
    def description(self) -> str:
        """The help as a sentence; names in it, such as gRPC, keep their case."""
        return f"{self.help[0].upper()}{self.help[1:]}."


COMMANDS = {
    "serve": _Command("pagewire.cli.serve", "serve a model over gRPC"),
    "complete": _Command("pagewire.cli.complete", "continue a text"),
    "chat": _Command("pagewire.cli.chat", "talk to a model"),
    "bench": _Command("pagewire.bench.cli", "measure a server"),
    "demo": _Command("pagewire.cli.demo", "serve the bundled model and complete three prompts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand. Errors of this package end it with one line on standard error and status 1."""
    _replace_what_does_not_encode()
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parse(argv)
    from pagewire.errors import PagewireError

    try:
        return int(args.run(args))
    except PagewireError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
        return 141


def _replace_what_does_not_encode() -> None:
    """A character that the terminal does not have must not end a stream, nor a byte that is no text the input."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pagewire", description="Serve large language models over gRPC, and talk to them."
    )
    parser.add_argument("--version", action="version", version=f"pagewire {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    asked_for = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.description)
        if name == asked_for:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser.parse_args(argv)


def _version() -> str:
    from pagewire import __version__

    return __version__
