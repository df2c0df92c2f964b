"""Flags of the subcommands that talk to a server: its address and the credentials."""

import argparse
import os
from pathlib import Path
from typing import Any

from pagewire.errors import InvalidRequest

API_KEY_VARIABLE = "PAGEWIRE_API_KEY"


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for the server's address, TLS and the API key."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--server",
        default="localhost:50051",
        metavar="ADDRESS",
        help="HOST:PORT, dns:///NAME:PORT or unix:PATH (default: %(default)s)",
    )
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="for each request (default: none)")
    group.add_argument("--tls", action="store_true", help="use TLS, and trust the authorities that gRPC knows")
    group.add_argument("--tls-ca", metavar="FILE", help="use TLS, and trust these authorities (PEM)")
    group.add_argument("--tls-cert", metavar="FILE", help="certificate to show, where the server wants one (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="private key of --tls-cert (PEM)")
    keys = group.add_mutually_exclusive_group()
    keys.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"the API key (default: the variable {API_KEY_VARIABLE})"
    )
    keys.add_argument("--api-key", metavar="KEY", help="the API key itself; other users of the machine can see it")


def connection_from(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of Client and AsyncClient.

    Raises:
        InvalidRequest: the file of the API key cannot be read.
    """
    return {
        "target": args.server,
        "tls": args.tls,
        "tls_ca": args.tls_ca,
        "tls_cert": args.tls_cert,
        "tls_key": args.tls_key,
        "api_key": api_key_from(args),
        "timeout_s": args.timeout,
    }


def api_key_from(args: argparse.Namespace) -> str | None:
    """Returns the API key, if there is one. Raises InvalidRequest."""
    if args.api_key_file is None:
        return args.api_key or os.environ.get(API_KEY_VARIABLE) or None
    try:
        key: str = args.api_key_file.read_text().strip()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise InvalidRequest.of_field("api_key_file", f"{args.api_key_file}: {reason}") from exc
    if not key:
        raise InvalidRequest.of_field("api_key_file", f"{args.api_key_file} is empty")
    return key
