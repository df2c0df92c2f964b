"""The router process's configuration: built once by the CLI, never changed."""

import os
from dataclasses import dataclass

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message taken from a client while the model is not known, and for models of very long context."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Configuration of one router. Limits that depend on the model come from the shards."""

    shards: tuple[str, ...]
    """Addresses of the shards to drive: host:port, unix:PATH, or dns:///NAME:PORT."""
    listen: str = "127.0.0.1:50051"
    """Address to serve on: host:port (port 0 takes a free one), or unix:PATH."""
    http_port: int | None = None
    """Port of the HTTP front, on the host of `listen`; None: not served; 0: any free port."""
    http_max_body_bytes: int = 32 * 1024 * 1024
    """Largest body of a request over HTTP."""
    http_max_connections: int = 16384
    """Connections to the HTTP front; fewer if the process may not open as many files."""
    http_page: bool = True
    """Serve a page to try the model on at / of the HTTP front."""
    http_cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call over HTTP from a browser; "*" is all."""
    metrics_port: int | None = None
    """Port of /metrics, /healthz and /readyz; None: not served; 0: any free port."""
    metrics_socket: str | None = None
    """Path of a Unix socket with the same pages; None: not served there."""
    health_port: int | None = None
    """Port of a plaintext grpc.health.v1, on the host of `listen`; None: on `listen` alone; 0: any free port."""
    health_listen: str | None = None
    """Further address of the plaintext health service: host:port, or unix:PATH."""
    tls_cert: str | None = None
    """PEM file of the certificate that clients are shown, with its chain; read again when it changes. None: no TLS."""
    tls_key: str | None = None
    """PEM file of its private key."""
    tls_client_ca: str | None = None
    """PEM file of the authorities that sign clients' certificates; None: clients need no certificate."""
    shard_tls_ca: str | None = None
    """PEM file of the authorities that sign the shards' certificates; None: no TLS to shards."""
    shard_tls_cert: str | None = None
    """PEM file of the certificate that shards are shown."""
    shard_tls_key: str | None = None
    """PEM file of its private key."""
    api_keys: str | None = None
    """File of the keys that calls may carry, one on each line, with a name behind it; read again when it changes."""
    jwt_jwks: str | None = None
    """File of the public keys (JWKS) of tokens that calls may carry; read again when it changes. If neither keys nor
    tokens are given, calls need none."""
    jwt_issuer: str = ""
    """Who has issued tokens: their claim `iss`."""
    jwt_audience: str = ""
    """Who tokens are for: what their claim `aud` must have."""
    client_limits: str | None = None
    """File of the limits of single clients, see admission/client_limits.py; None: there are none."""
    max_queued_requests: int = 4096
    """Requests that may wait before new ones are refused."""
    max_queued_tokens: int = 4 * 1024 * 1024
    """Tokens of prompts, and of answers that are resumed, that may wait before new requests are refused."""
    max_inflight: int = 2
    """Plans that may be outstanding on a shard group, 1 to 4; if more than 1, of a pipeline one more for each further
    stage."""
    step_timeout_s: float = 30.0
    """Longest time without progress of a shard group before its requests are moved. A shard that proves slow, not hung,
    is allowed more."""
    shard_wait_s: float = 60.0
    """Longest time that requests wait for shards that have gone and may be back, before they are refused."""
    max_n: int = 128
    """Most sequences of one request."""
    max_logprobs: int = 20
    """Most log-probabilities for each token; -1: as many as the vocabulary has tokens."""
    generation_config: str = "auto"
    """auto: absent sampling parameters are what the model's generation_config.json says; vllm: vLLM's defaults."""
    max_receive_message_bytes: int | None = None
    """Largest message taken from a client; None: what a request to the served model can need (Limits in validation.py),
    and at most MAX_MESSAGE_BYTES."""
    coalesce_max_ms: float = 50.0
    """Under load, no token waits longer than this for the next message of its stream; 0: all go out at once."""
    tokenizer_threads: int = 1
    """Threads that encode long prompts beside the event loop."""
    trust_request_chat_template: bool = False
    """Take chat templates from clients. They run in a process of their own, bounded in time and memory."""
    tool_call_parser: str = "auto"
    """Format of the model's tool calls, see parsing/choice.py; auto: as its files say; none: not parsed."""
    reasoning_parser: str = "auto"
    """Format of its reasoning, in the same way."""
    max_request_time_s: float | None = None
    """Longest that a request may take from its arrival to its last token, whatever its deadline; None: no limit."""
    drain_grace_s: float = 30.0
    """Longest time for running requests to finish once the router was told to stop."""
    exit_with_parent: bool = False
    """Stop when standard input ends: the parent process is gone."""
    trace_exporters: tuple[str, ...] = ()
    """Names of the OpenTelemetry exporters that traces go to; empty: no tracing. The SDK reads the rest of OTEL_*."""
    log_level: str = "warning"
    """Least severe messages to log; one of LOG_LEVELS."""


def default_tokenizer_threads() -> int:
    """One thread for each four cores, since encoding is a small share of a router's work; two at least, so that one
    very long text does not hold up all others."""
    return max(2, (os.cpu_count() or 1) // 4)
