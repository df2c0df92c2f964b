"""The `pagewire` command. Each subcommand is a module, which is imported only when that subcommand is called.

A subcommand's module has `add_arguments(parser)` and `run(args) -> exit status`.
"""

import argparse
import codecs
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class _Command:
    module: str
    help: str

    @property
    def description(self) -> str:
        """The help text as a sentence; names in it, such as gRPC, keep their case."""
        return f"{self.help[0].upper()}{self.help[1:]}."


COMMANDS = {
    "serve": _Command("pagewire.cli.serve", "serve a model over gRPC"),
    "complete": _Command("pagewire.cli.complete", "continue a text"),
    "chat": _Command("pagewire.cli.chat", "talk to a model"),
    "bench": _Command("pagewire.bench.cli", "measure a server"),
    "top": _Command("pagewire.top.cli", "watch what routers do"),
    "replay": _Command("pagewire.cli.replay", "run a shard's flight recording again"),
    "demo": _Command("pagewire.cli.demo", "serve the bundled model and complete three prompts"),
}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, without argparse's usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand. PagewireError and OSError end it with one line on standard error and status 1."""
    _open_standard_streams()
    # gRPC's core would log what our errors already say, and every connection that a child closes.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parse(argv)
    from pagewire.errors import PagewireError

    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except PagewireError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads our output any more
        _drop_output()
        return 141
    except OSError as exc:
        _drop_output()
        print(f"error: {exc}", file=sys.stderr)
        return 1


def _open_standard_streams() -> None:
    """Opens closed streams on /dev/null, so that no file or socket takes their number; replaces undecodable bytes."""
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        stream = getattr(sys, name)
        if stream is None:
            _open_null(fd)
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  open until the end
        elif isinstance(stream, io.TextIOWrapper):
            # Neither an undecodable byte in the input nor a character that the terminal lacks may raise an error.
            is_ascii = name == "stdin" and codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(errors="replace", encoding="utf-8" if is_ascii else None)


def _open_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != fd:
        os.dup2(null, fd)
        os.close(null)
    os.set_inheritable(fd, True)


def _drop_output() -> None:
    """Discards buffered output, which would fail again when the interpreter ends."""
    with contextlib.suppress(OSError):
        _open_null(sys.stdout.fileno())


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="pagewire", description="Serve large language models over gRPC, and talk to them.")
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
