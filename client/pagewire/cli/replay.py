"""`pagewire replay`: runs a shard's flight recording again, in a process that has the shard's packages."""

import argparse
import subprocess
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument("file", metavar="FILE", help="what --flight-recorder has written, or its FILE.1")
    parser.add_argument("--model", metavar="M", help="directory or hub id of the same model (default: as recorded)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to run (default: as recorded)")


def run(args: argparse.Namespace) -> int:
    """Returns 0: all steps came out as recorded; 1: one did not; 2: the file cannot be run."""
    options = {"--model": args.model, "--device": args.device}
    words = [word for flag, value in options.items() if value is not None for word in (flag, value)]
    return subprocess.run(
        [sys.executable, "-m", "pagewire_shard.replay", *words, "--", args.file], check=False
    ).returncode
