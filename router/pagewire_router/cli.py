"""The command pagewire-router: one router for a list of shards."""

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pagewire_common.tracing.settings import trace_exporters

from pagewire_router.config import LOG_LEVELS, RouterConfig, default_tokenizer_threads
from pagewire_router.groups.shard_resolver import dns_name
from pagewire_router.parsing.choice import UnknownFormat, choose_format

NEEDS = (
    ("--tls-cert", "--tls-key"),
    ("--tls-key", "--tls-cert"),
    ("--tls-client-ca", "--tls-cert"),
    ("--shard-tls-cert", "--shard-tls-key"),
    ("--shard-tls-key", "--shard-tls-cert"),
    ("--shard-tls-cert", "--shard-tls-ca"),
    ("--jwt-jwks", "--jwt-issuer"),
    ("--jwt-jwks", "--jwt-audience"),
    ("--jwt-issuer", "--jwt-jwks"),
    ("--jwt-audience", "--jwt-jwks"),
)
"""Flags that make no sense without another."""
MIN_STEP_TIMEOUT_S = 2.0

if TYPE_CHECKING:
    from pagewire_router.request_runner import RequestRunner


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT. An error at start is one line on standard error and exit status 1."""
    config = parse_config(arguments)
    # Read when gRPC is imported. The core logs by itself, a line for every malformed header.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import uvloop
    from pagewire_common.process_log import set_up_logging

    set_up_logging(config.log_level)

    sys.exit(uvloop.run(_serve_shards(config)))


def parse_config(arguments: Sequence[str] | None = None) -> RouterConfig:
    """The configuration that a command line asks for. Wrong usage ends the process with status 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.listen and (options.host or options.port is not None):
        parser.error("--listen excludes --host and --port")
    shards = tuple(address for address in options.shards.split(",") if address)
    if not shards:
        parser.error("--shards names no address")
    try:
        for shard in shards:
            dns_name(shard)
    except ValueError as error:
        parser.error(f"--shards: {error}")
    for flag, needed in NEEDS:
        if _value_of(options, flag) is not None and _value_of(options, needed) is None:
            parser.error(f"{flag} needs {needed}")
    try:
        choose_format(options.tool_call_parser, options.reasoning_parser, templates={}, tokens=())
    except UnknownFormat as error:
        parser.error(str(error))
    port = 50051 if options.port is None else options.port
    return RouterConfig(
        shards=shards,
        listen=options.listen or f"{options.host or '0.0.0.0'}:{port}",
        http_port=options.http_port,
        http_max_body_bytes=options.http_max_body_bytes,
        http_max_connections=options.http_max_connections,
        http_page=options.http_page,
        http_cors_origins=tuple(options.http_cors_origin),
        metrics_port=options.metrics_port,
        metrics_socket=options.metrics_socket,
        health_port=options.health_port,
        health_listen=options.health_listen,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_client_ca=options.tls_client_ca,
        shard_tls_ca=options.shard_tls_ca,
        shard_tls_cert=options.shard_tls_cert,
        shard_tls_key=options.shard_tls_key,
        api_keys=options.api_keys,
        jwt_jwks=options.jwt_jwks,
        jwt_issuer=options.jwt_issuer or "",
        jwt_audience=options.jwt_audience or "",
        client_limits=options.client_limits,
        trust_request_chat_template=options.trust_request_chat_template,
        max_queued_requests=options.max_queued_requests,
        max_queued_tokens=options.max_queued_tokens,
        max_receive_message_bytes=options.max_receive_message_bytes,
        max_logprobs=options.max_logprobs,
        generation_config=options.generation_config,
        max_inflight=options.max_inflight,
        step_timeout_s=options.step_timeout,
        shard_wait_s=options.shard_wait,
        coalesce_max_ms=options.coalesce_max_ms,
        tokenizer_threads=default_tokenizer_threads(),
        tool_call_parser=options.tool_call_parser,
        reasoning_parser=options.reasoning_parser,
        max_request_time_s=options.max_request_time,
        drain_grace_s=options.drain_grace,
        exit_with_parent=options.exit_with_parent,
        trace_exporters=trace_exporters(os.environ),
        log_level=options.log_level,
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    defaults = RouterConfig(shards=())
    parser = argparse.ArgumentParser(
        prog="pagewire-router",
        description="Serves clients: tokenizes, queues, schedules, and drives model shards.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--shards",
        required=True,
        metavar="HOST:PORT,...",
        help="addresses of all shards to drive; dns:///NAME:PORT is all shards behind a name, for good",
    )
    add("--listen", metavar="HOST:PORT|unix:PATH", help="where to serve, in place of --host and --port")
    add("--host", help="address to serve on; all interfaces if not given")
    add("--port", type=_port, help="port to serve on, 50051 if not given; 0 takes a free one")
    add("--http-port", type=_port, metavar="PORT", help="port of the HTTP front; 0 takes a free one")
    add("--no-http-page", dest="http_page", action="store_false", help="serve no page to try the model on over HTTP")
    add("--metrics-port", type=_port, metavar="PORT", help="port of /metrics, /healthz and /readyz; 0 takes a free one")
    add("--metrics-socket", metavar="PATH", help="serve the same pages on a Unix socket too")
    add("--health-port", type=_port, metavar="PORT", help="port of gRPC health in plaintext; 0 takes a free one")
    add("--health-listen", metavar="ADDR", help="serve gRPC health in plaintext on HOST:PORT or unix:PATH too")
    _add_bounds(parser.add_argument_group("bounds"), defaults)
    add("--log-level", choices=LOG_LEVELS, default=defaults.log_level, help="least severe messages to log")
    add(
        "--coalesce-max-ms",
        type=_duration,
        default=defaults.coalesce_max_ms,
        metavar="MS",
        help="under load, the longest time that a token waits for a message of several; 0: every token at once",
    )
    add(
        "--max-request-time",
        type=_limit,
        metavar="S",
        help="longest that a request may take; its own deadline may end it sooner",
    )
    add(
        "--drain-grace",
        type=_duration,
        default=defaults.drain_grace_s,
        metavar="S",
        help="time to finish after SIGTERM",
    )
    add("--exit-with-parent", action="store_true", help="stop when standard input ends")
    _add_sampling_options(parser.add_argument_group("sampling"), defaults)
    _add_parser_options(parser.add_argument_group("output"), defaults)
    _add_shard_options(parser.add_argument_group("driving shards"), defaults)
    _add_security_options(parser.add_argument_group("security"))
    return parser


def _add_bounds(group: argparse._ArgumentGroup, defaults: RouterConfig) -> None:
    add = group.add_argument
    add(
        "--max-queued-requests",
        type=_positive,
        metavar="N",
        default=defaults.max_queued_requests,
        help="requests that may wait",
    )
    add(
        "--max-queued-tokens",
        type=_positive,
        metavar="N",
        default=defaults.max_queued_tokens,
        help="tokens that may wait: of prompts, and of answers that are resumed",
    )
    add(
        "--max-receive-message-bytes",
        type=_positive,
        metavar="BYTES",
        help="largest message taken from a client; if not given, 1 MiB and 16 bytes for each token of the model's "
        "context, at most 16 MiB",
    )
    add(
        "--http-max-body-bytes",
        type=_positive,
        metavar="BYTES",
        default=defaults.http_max_body_bytes,
        help="largest body of a request over HTTP",
    )
    add(
        "--http-max-connections",
        type=_positive,
        metavar="N",
        default=defaults.http_max_connections,
        help="connections over HTTP; at the limit a new one takes the place of one without a request, or is refused",
    )


def _add_sampling_options(group: argparse._ArgumentGroup, defaults: RouterConfig) -> None:
    group.add_argument(
        "--generation-config",
        choices=("auto", "vllm"),
        default=defaults.generation_config,
        help="what absent sampling parameters mean: what the model's generation_config.json says, or vLLM's defaults",
    )
    group.add_argument(
        "--max-logprobs",
        type=_max_logprobs,
        metavar="N",
        default=defaults.max_logprobs,
        help="log-probabilities that a request may ask for of each token; -1: of the whole vocabulary",
    )


def _add_parser_options(group: argparse._ArgumentGroup, defaults: RouterConfig) -> None:
    names = "; auto: as the model's files say, none: they are left in the text"
    for flag, default, what in (
        ("--tool-call-parser", defaults.tool_call_parser, "tool calls"),
        ("--reasoning-parser", defaults.reasoning_parser, "reasoning"),
    ):
        group.add_argument(
            flag, metavar="NAME", default=default, help=f"format of the model's {what}, see docs/tool-calls.md{names}"
        )


def _add_shard_options(group: argparse._ArgumentGroup, defaults: RouterConfig) -> None:
    add = group.add_argument
    add(
        "--max-inflight",
        type=int,
        choices=range(1, 5),
        default=defaults.max_inflight,
        help="plans outstanding on a shard group",
    )
    add(
        "--step-timeout",
        type=_step_timeout,
        default=defaults.step_timeout_s,
        metavar="S",
        help="time without progress after which a shard group's requests are moved",
    )
    add(
        "--shard-wait",
        type=_duration,
        default=defaults.shard_wait_s,
        metavar="S",
        help="longest that requests wait for shards that have gone",
    )


def _add_security_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--tls-cert", metavar="FILE", help="PEM certificate chain to show clients; read again when it changes")
    add("--tls-key", metavar="FILE", help="PEM private key of --tls-cert")
    add("--tls-client-ca", metavar="FILE", help="PEM authorities of which clients must show a certificate")
    add("--shard-tls-ca", metavar="FILE", help="PEM authorities of the shards' certificates; turns TLS to shards on")
    add("--shard-tls-cert", metavar="FILE", help="PEM certificate chain to show shards")
    add("--shard-tls-key", metavar="FILE", help="PEM private key of --shard-tls-cert")
    add("--api-keys", metavar="FILE", help="keys that calls may carry, one on each line; read again when it changes")
    add("--jwt-jwks", metavar="FILE", help="public keys (JWKS) of tokens that calls may carry; read again likewise")
    add("--jwt-issuer", metavar="ISS", help="issuer that tokens must have; needed with --jwt-jwks")
    add("--jwt-audience", metavar="AUD", help="audience that tokens must be for; needed with --jwt-jwks")
    add("--client-limits", metavar="FILE", help="limits of single clients, in TOML; read again when it changes")
    add(
        "--http-cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin whose pages may call over HTTP from a browser, such as https://example.org; * is all; repeatable",
    )
    add(
        "--trust-request-chat-template",
        action="store_true",
        help="take chat templates from clients; they run sandboxed, in a process bounded in time and memory",
    )


def _value_of(options: argparse.Namespace, flag: str) -> str | None:
    value: str | None = getattr(options, flag.removeprefix("--").replace("-", "_"))
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _max_logprobs(text: str) -> int:
    value = int(text)
    if value < -1:
        raise argparse.ArgumentTypeError(f"{value} is not -1 or more")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is not 0 to 65535")
    return value


def _duration(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def _limit(text: str) -> float:
    value = _duration(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 would be over at once")
    return value


def _step_timeout(text: str) -> float:
    value = _duration(text)
    if value < MIN_STEP_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text} is not {MIN_STEP_TIMEOUT_S:g} or more: heartbeats come every second")
    return value


async def _serve_shards(config: RouterConfig) -> int:
    from pagewire_router.groups.dispatcher import Dispatcher

    return await serve(config, Dispatcher(config))


async def serve(config: RouterConfig, runner: "RequestRunner") -> int:
    """Runs the router until it is told to stop; returns the exit status."""
    from pagewire_common.garbage import spare_long_lived_objects
    from pagewire_common.loop_watchdog import LoopWatchdog
    from pagewire_common.shutdown import Shutdown
    from pagewire_common.tls import TlsError

    from pagewire_router.errors import RouterError
    from pagewire_router.server import RouterServer, ServerError

    shutdown = Shutdown(with_parent=config.exit_with_parent)
    server = RouterServer(config, runner)
    ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(shutdown.requested.wait())]
    watchdog = LoopWatchdog()
    try:
        address = await server.start()
        opening = asyncio.ensure_future(server.open())
        await asyncio.wait((opening, *ends), return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            spare_long_lived_objects()
            watchdog.start()
            if server.http_address is not None:
                print(f"pagewire-router http on {server.http_address}", flush=True)
            print(f"pagewire-router ready on {address}", flush=True)
            failing = asyncio.ensure_future(runner.wait_failed())
            ends.append(failing)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
        opening.cancel()
        # Without a parent there is nobody to finish for.
        if not shutdown.is_parent_gone:
            await server.drain()
        return 0
    except (RouterError, ServerError, TlsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for end in ends:
            end.cancel()
        await server.stop()
        watchdog.stop()
