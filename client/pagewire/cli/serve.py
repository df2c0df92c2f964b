"""`pagewire serve`: runs a router and its shards until SIGTERM."""

import argparse
import os
from dataclasses import fields

from pagewire.serve.config import ServeConfig
from pagewire.serve.gpus import visible_gpus
from pagewire.serve.options import add_model_options
from pagewire.serve.vllm_flags import add_vllm_flags, vllm_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments. Those that are not given set no attribute: ServeConfig has the defaults."""
    parser.add_argument(
        "model",
        nargs="?",
        default="demo",
        metavar="MODEL",
        help="Hugging Face directory or hub id (default: the bundled demo model)",
    )
    add_model_options(parser)
    _add_listening(parser.add_argument_group("listening"))
    _add_recovery(parser.add_argument_group("recovery"))
    _add_time_limits(parser.add_argument_group("time limits"))
    _add_security(parser.add_argument_group("security"))
    add_vllm_flags(parser)


def _add_listening(group: argparse._ArgumentGroup) -> None:
    suppress = argparse.SUPPRESS
    group.add_argument("--host", default=suppress, help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=suppress, help="port; 0 takes a free one (default: 50051)")
    group.add_argument("--uds", metavar="PATH", default=suppress, help="listen on a Unix socket instead")
    group.add_argument(
        "--private-socket",
        action="store_true",
        help="listen on a Unix socket that only this user can reach; the ready line says where",
    )
    group.add_argument(
        "--http-port",
        type=int,
        metavar="PORT",
        default=suppress,
        help="port of the HTTP front; 0 takes a free one (default: 8000; 0 with --port 0; on Unix sockets none)",
    )
    group.add_argument(
        "--no-http", dest="http_port", action="store_const", const=None, default=suppress, help="serve no HTTP"
    )
    group.add_argument(
        "--no-http-page",
        dest="http_page",
        action="store_false",
        default=suppress,
        help="serve no page to try the model on over HTTP",
    )
    group.add_argument(
        "--http-max-body-bytes",
        type=int,
        metavar="BYTES",
        default=suppress,
        help="largest body of a request over HTTP (default: 32 MiB)",
    )
    group.add_argument(
        "--http-max-connections",
        type=int,
        metavar="N",
        default=suppress,
        help="connections over HTTP; at the limit a new one takes the place of one without a request, or is refused "
        "(default: 16384)",
    )
    group.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        default=suppress,
        help="port of /metrics, /healthz and /readyz; 0 takes a free one (default: 9400, on Unix sockets none)",
    )
    group.add_argument(
        "--health-port",
        type=int,
        metavar="PORT",
        default=suppress,
        help="port of gRPC health in plaintext, for probes; 0 takes a free one (default: none)",
    )
    group.add_argument("--exit-with-parent", action="store_true", help="stop when standard input ends")


def _add_recovery(group: argparse._ArgumentGroup) -> None:
    suppress = argparse.SUPPRESS
    group.add_argument(
        "--flight-recorder",
        metavar="DIR",
        default=suppress,
        help="keep the last plans and results of each shard in DIR, for `pagewire replay`; prompts and answers are in "
        "them, as token ids (default: not kept)",
    )
    group.add_argument(
        "--no-spare-shards",
        dest="spare_shards",
        action="store_false",
        default=suppress,
        help="keep no process that has imported everything, to replace a lost shard sooner (about 250 MB)",
    )


def _add_time_limits(group: argparse._ArgumentGroup) -> None:
    for flag, text in (
        ("--max-request-time", "longest that a request may take (default: no limit)"),
        ("--drain-grace", "how long requests may go on after SIGTERM (default: 30)"),
        ("--step-timeout", "time without progress after which a shard group's requests are moved (default: 30)"),
        ("--shard-wait", "longest that requests wait for shards that have gone (default: 60)"),
    ):
        dest = flag.removeprefix("--").replace("-", "_") + "_s"
        group.add_argument(flag, dest=dest, type=float, metavar="SECONDS", default=argparse.SUPPRESS, help=text)


def _add_security(group: argparse._ArgumentGroup) -> None:
    for flag, text in (
        ("--tls-cert", "PEM certificate chain to show clients; read again when it changes"),
        ("--tls-key", "PEM private key of --tls-cert"),
        ("--tls-client-ca", "PEM authorities of which clients must show a certificate"),
        ("--api-keys", "keys that calls may carry, one on each line; read again when it changes"),
        ("--jwt-jwks", "public keys (JWKS) of tokens that calls may carry; read again when it changes"),
        ("--client-limits", "limits of single clients, in TOML; read again when it changes"),
    ):
        group.add_argument(flag, metavar="FILE", default=argparse.SUPPRESS, help=text)
    group.add_argument("--jwt-issuer", metavar="ISS", default=argparse.SUPPRESS, help="issuer that tokens must have")
    group.add_argument("--jwt-audience", metavar="AUD", default=argparse.SUPPRESS, help="audience of tokens")
    group.add_argument(
        "--http-cors-origin",
        dest="http_cors_origins",
        action="append",
        default=argparse.SUPPRESS,
        metavar="ORIGIN",
        help="origin whose pages may call over HTTP from a browser, such as https://example.org; * is all; repeatable",
    )
    group.add_argument(
        "--trust-request-chat-template",
        action="store_true",
        help="take chat templates from clients; they run sandboxed, in a process bounded in time and memory",
    )


def config_from(args: argparse.Namespace) -> ServeConfig:
    """Returns the configuration that parsed arguments describe."""
    given = {field.name: getattr(args, field.name) for field in fields(ServeConfig) if hasattr(args, field.name)}
    if "uds" in given or given.get("private_socket"):
        given.setdefault("metrics_port", None)
        given.setdefault("http_port", None)
    if given.get("port") == 0:
        given.setdefault("http_port", 0)
    given["http_cors_origins"] = tuple(given.get("http_cors_origins", ()))
    given.update(vllm_options(args))
    if given.get("device") != "cpu":
        given["gpus"] = visible_gpus(os.environ)
    return ServeConfig(**given)


def run(args: argparse.Namespace) -> int:
    """Serves until told to stop."""
    import asyncio

    from pagewire.serve.supervisor import Supervisor

    async def supervise() -> int:
        return await Supervisor(config_from(args)).run()

    return asyncio.run(supervise())
