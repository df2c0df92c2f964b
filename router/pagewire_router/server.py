"""Composes the router: the fronts, probes and metrics over one RequestRunner, from start to stop."""

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pagewire_common.health_endpoint import HealthEndpoint
from pagewire_common.health_state import HealthState
from pagewire_common.http_endpoint import HttpEndpoint, process_pages
from pagewire_common.listen_address import host_of, is_local, with_port
from pagewire_common.model_files import TOKENIZER_FILE
from pagewire_common.tls import TlsError, server_credentials

from pagewire_router.admission.api_keys import ApiKeys
from pagewire_router.admission.client_limits import ClientLimits
from pagewire_router.admission.credentials import Credentials, Tokens
from pagewire_router.admission.reloaded_file import FileError
from pagewire_router.config import MAX_MESSAGE_BYTES, RouterConfig
from pagewire_router.grpc_front.calls import CredentialsInterceptor, ServiceHandler
from pagewire_router.grpc_front.inference_service import SERVICE_NAME, InferenceService
from pagewire_router.inference import Inference
from pagewire_router.metrics.pacing_metrics import PacingMetrics
from pagewire_router.metrics.request_metrics import METHODS, Metrics
from pagewire_router.metrics.server_metrics import ServerMetrics, watch_loop_lag
from pagewire_router.output.pacer import Pacer
from pagewire_router.output.write_budget import WriteBudget
from pagewire_router.request_runner import RequestRunner
from pagewire_router.text.template_process import TemplateProcess
from pagewire_router.text.text_threads import QueueBounds
from pagewire_router.text.tokenizer import Tokenizer
from pagewire_router.text.tokenizer_files import TokenizerFilesError

if TYPE_CHECKING:
    from pagewire_common.tracing.exporting import Tracing

    from pagewire_router.http_front.front import HttpFront

OPEN_SERVICES = (health.SERVICE_NAME, reflection.SERVICE_NAME)
"""Services that need no API key."""
MAX_PENDING_CALLS = 65_536
"""Most calls that gRPC holds before they are looked at. A call takes about 20 kB, all of them below 1.5 GB."""
UNREAD_BYTES = 65_536
"""Most bytes of a call's message that gRPC receives before it is read. Most messages are shorter."""
HTTP_WRITES_PER_TURN = 32
"""Events that are written in one turn of the event loop; they take about as long as gRPC's messages of a turn."""
HTTP_MIN_WRITES_PER_S = 25_000.0
"""Events that may be written per second even where cores are scarce. They are so cheap that fewer of them, held back by
timers, leave 256 streams on two cores no faster."""
STOP_GRACE_S = 1.0
"""Time for the last messages of streams whose requests have ended."""
_log = logging.getLogger(__name__)


class ServerError(Exception):
    """The router cannot serve; the message says why."""


def channel_options(config: RouterConfig) -> list[tuple[str, int]]:
    """The gRPC server's options."""
    return [
        # Larger messages are refused by gRPC with RESOURCE_EXHAUSTED before they are read. What the model allows is
        # known later; messages between the two are read, and refused by InferenceService.
        ("grpc.max_receive_message_length", config.max_receive_message_bytes or MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        # What a message may fill before it is read (reception.py). Without probes of the bandwidth, which would let it
        # be megabytes; while it is read there is a window for all of it.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
        # A second router on the same port must fail, not share its connections.
        ("grpc.so_reuseport", 0),
        # One client may hold as many streams as it likes: admission has its own limits.
        ("grpc.max_concurrent_streams", 1 << 20),
        # Calls that wait to be looked at. Above these numbers gRPC ends calls with a bare CANCELLED, above the first
        # one by chance: refusals are admission's business, which says when to come back.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        # Peers that vanish without closing: ping after 30 s of silence, gone after 20 s more.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),
        # Clients may ping this often, also without calls.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


class RouterServer:
    """The servers of a router for clients and probes, over one RequestRunner."""

    def __init__(self, config: RouterConfig, runner: RequestRunner) -> None:
        self._config = config
        self._runner = runner
        self._metrics = Metrics()
        self._metrics.add(runner.collector, runner.histograms)
        self._metrics.add(ServerMetrics(config, self._state))
        max_floor_s = config.coalesce_max_ms / 1000
        self._pacer = Pacer(asyncio.get_running_loop(), max_floor_s=max_floor_s, budget=WriteBudget())
        # Events over HTTP cost less than gRPC's messages: the same rule lets more of them go out.
        self._http_pacer = Pacer(
            asyncio.get_running_loop(),
            max_floor_s=max_floor_s,
            budget=WriteBudget(min_writes_per_s=HTTP_MIN_WRITES_PER_S),
            writes_per_turn=HTTP_WRITES_PER_TURN,
        )
        self._metrics.add(PacingMetrics(self._pacer, self._http_pacer))
        self._handler = ServiceHandler(
            SERVICE_NAME, "the router looks for shards", self._metrics.count_refused, self._pacer.on_call
        )
        self._health = HealthEndpoint(SERVICE_NAME, is_ready=self._is_serving)
        self._credentials = _credentials(config)
        self._limits = None if config.client_limits is None else ClientLimits(config.client_limits)
        if self._limits is not None:
            self._metrics.add(self._limits.metrics)
        self._tracing = _open_tracing(config)
        self._grpc = grpc.aio.server(options=channel_options(config), interceptors=self._interceptors())
        self._http_front: HttpFront | None = None
        if config.http_port is not None:
            self._http_front = self._new_http_front(config)
        self._probes = HttpEndpoint(
            process_pages(render_metrics=self._metrics.render, is_alive=lambda: True, state=self._state)
        )
        self._service: InferenceService | None = None
        self._tokenizer: Tokenizer | None = None
        self._template_process = TemplateProcess() if config.trust_request_chat_template else None
        self._lag_task: asyncio.Task[None] | None = None
        self._is_open = False
        self._is_draining = False
        self.http_address: str | None = None
        """Host and port of the HTTP front, after start(); None: it is not served."""
        self.metrics_port: int | None = None
        """The port of the HTTP endpoint, after start()."""
        self.health_port: int | None = None
        """The port of the plaintext health service, after start()."""

    async def start(self) -> str:
        """Listens; returns the address. Raises ServerError.

        Probes are answered from now on; calls are told to come back until open() has let them in.
        """
        await self._start_probes()
        try:
            for files in (self._credentials, self._limits):
                if files is not None:
                    files.read()
        except FileError as error:
            raise ServerError(str(error)) from None
        address = self._bind()
        await self._start_http()
        self._grpc.add_generic_rpc_handlers((self._handler,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._grpc)
        reflection.enable_server_reflection((SERVICE_NAME, *OPEN_SERVICES), self._grpc)
        await self._grpc.start()
        return address

    async def open(self) -> None:
        """Serves, once there are shards; returns when a step would run. Raises ServerError."""
        self._lag_task = asyncio.create_task(watch_loop_lag(self._metrics.loop_lag_s), name="loop lag")
        await self._runner.start()
        files = self._runner.files
        if TOKENIZER_FILE in files:
            self._tokenizer = self._read_tokenizer()
        else:
            _log.warning("The model has no %s: token ids alone are served", TOKENIZER_FILE)
        inference = self._new_inference()
        self._service = InferenceService(self._config, inference, self._metrics)
        self._handler.open(self._service.handler())
        if self._http_front is not None:
            self._http_front.open(inference, self._tokenizer)
        self._is_open = True
        await self._runner.wait_ready()
        await self._health.publish()

    async def _start_probes(self) -> None:
        host, config = host_of(self._config.listen), self._config
        try:
            self.health_port = await self._health.start(host, config.health_port, config.health_listen)
        except OSError as error:
            port = None if config.health_port is None else f"{host}:{config.health_port}"
            where = " or ".join(filter(None, (config.health_listen, port)))
            raise ServerError(f"cannot serve health on {where}: {error}") from None
        try:
            if config.metrics_port is not None:
                self.metrics_port = await self._probes.start(host, config.metrics_port)
            if config.metrics_socket is not None:
                await self._probes.start_unix(config.metrics_socket)
        except OSError as error:
            port = None if config.metrics_port is None else f"{host}:{config.metrics_port}"
            where = " or ".join(filter(None, (port, config.metrics_socket)))
            raise ServerError(f"cannot serve metrics on {where}: {error}") from None

    def _new_http_front(self, config: RouterConfig) -> "HttpFront":
        # Only now: routers without it need none of its packages.
        from pagewire_router.http_front.front import HttpFront

        tracer = None if self._tracing is None else self._tracing.tracer
        return HttpFront(config, self._metrics, self._credentials, self._http_pacer, self._is_serving, tracer)

    async def _start_http(self) -> None:
        host, port = host_of(self._config.listen), self._config.http_port
        if self._http_front is None or port is None:
            return
        try:
            bound_port = await self._http_front.start(host, port)
        except TlsError as error:
            raise ServerError(str(error)) from None
        except OSError as error:
            raise ServerError(f"cannot serve HTTP on {host}:{port}: {error}") from None
        self.http_address = f"[{host}]:{bound_port}" if ":" in host else f"{host}:{bound_port}"

    def _read_tokenizer(self) -> Tokenizer:
        model, num_threads = self._runner.model, self._config.tokenizer_threads
        try:
            return Tokenizer(
                self._runner.files, model.vocab_size, num_threads=num_threads, queue_bounds=self._queue_bounds()
            )
        except TokenizerFilesError as error:
            raise ServerError(f"{model.model}: {error}") from None

    def _queue_bounds(self) -> QueueBounds:
        return QueueBounds(
            self._config.max_queued_requests, self._config.max_queued_tokens, lambda: self._runner.num_waiting
        )

    async def drain(self) -> None:
        """Tells probes that no more requests are wanted, and lets the running ones finish within the grace."""
        self._is_draining = True
        if self._http_front is not None:
            self._http_front.drain()
        await self._health.publish()
        await self._runner.drain(self._config.drain_grace_s)

    async def stop(self) -> None:
        """Ends everything. Calls that still run end with UNAVAILABLE."""
        self._is_draining = True
        await self._health.publish()
        await self._runner.stop()
        # Before gRPC cancels the calls that wait for these, which would tell nobody when to come back.
        if self._template_process is not None:
            await self._template_process.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
        if self._service is not None:
            await self._service.close()
        if self._http_front is not None:
            await self._http_front.stop()
        await self._grpc.stop(STOP_GRACE_S)
        await self._probes.stop()
        await self._health.stop()
        if self._lag_task is not None:
            self._lag_task.cancel()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.shutdown)

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """The first one sees a call first: refused calls are traced too."""
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if self._tracing is not None:
            from pagewire_router.grpc_front.tracing_interceptor import TracingInterceptor

            interceptors.append(TracingInterceptor(self._tracing.tracer, SERVICE_NAME, METHODS, self._config.listen))
        if self._credentials is not None:
            interceptors.append(CredentialsInterceptor(self._credentials, OPEN_SERVICES, self._metrics.count_refused))
        return interceptors

    def _new_inference(self) -> Inference:
        runner, process = self._runner, self._template_process
        return Inference(self._config, runner, self._tokenizer, self._pacer, self._metrics, process, self._limits)

    def _bind(self) -> str:
        listen = self._config.listen
        try:
            credentials = self._tls_credentials()
            if credentials is None:
                port = self._grpc.add_insecure_port(listen)
            else:
                port = self._grpc.add_secure_port(listen, credentials)
        except TlsError as error:
            raise ServerError(str(error)) from None
        except RuntimeError:
            port = 0
        if port == 0:
            raise ServerError(f"cannot listen on {listen}: the address is taken or not ours")
        return with_port(listen, port)

    def _tls_credentials(self) -> grpc.ServerCredentials | None:
        config = self._config
        if config.tls_cert is not None and config.tls_key is not None:
            if self._credentials is None and config.tls_client_ca is None and not is_local(config.listen):
                _log.warning(
                    "Whoever reaches %s may call: there are no API keys, and no --tls-client-ca", config.listen
                )
            return server_credentials(config.tls_cert, config.tls_key, config.tls_client_ca)
        if self._credentials is not None and not config.listen.startswith("unix:"):
            _log.warning("API keys travel unencrypted: use --tls-cert, or end TLS in front of the router")
        if self._credentials is None and not is_local(config.listen):
            _log.warning("Whoever reaches %s may call: there are no API keys, and no TLS", config.listen)
        return None

    def _state(self) -> HealthState:
        if self._is_draining:
            return HealthState.DRAINING
        return self._runner.state if self._is_open else HealthState.LOADING

    def _is_serving(self) -> bool:
        return self._state().is_ready


def _credentials(config: RouterConfig) -> Credentials | None:
    """What calls have to carry; None: nothing. Raises ServerError."""
    if config.api_keys is None and config.jwt_jwks is None:
        return None
    keys = None if config.api_keys is None else ApiKeys(config.api_keys)
    return Credentials(keys, None if config.jwt_jwks is None else _tokens(config, config.jwt_jwks))


def _tokens(config: RouterConfig, jwks: str) -> Tokens:
    try:
        from pagewire_router.admission.json_web_tokens import JsonWebTokens
    except ImportError as error:
        raise ServerError(f"--jwt-jwks needs the package {error.name}: pip install 'pagewire[jwt]'") from None
    return JsonWebTokens(jwks, config.jwt_issuer, config.jwt_audience)


def _open_tracing(config: RouterConfig) -> "Tracing | None":
    if not config.trace_exporters:
        return None
    # Only now: OpenTelemetry takes 0.2 s to import.
    from pagewire_common.tracing.exporting import open_tracing

    return open_tracing(config.trace_exporters, "pagewire-router", {})
