"""The shard process on its event loop: gRPC, health and metrics around the step thread."""

import asyncio
import logging
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pagewire.v1 import shard_pb2
from pagewire_common.health_endpoint import HealthEndpoint
from pagewire_common.http_endpoint import HttpEndpoint, process_pages
from pagewire_common.listen_address import host_of, with_port
from pagewire_common.protocol import MAX_SHARD_MESSAGE_BYTES
from pagewire_common.tls import TlsError, server_credentials

from pagewire_shard.config import ShardConfig
from pagewire_shard.errors import BadOption
from pagewire_shard.grammar.errors import UnusableTokenizer
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.recording.recorder import Recorder
from pagewire_shard.service.execute_service import ExecuteService
from pagewire_shard.service.lease import Lease
from pagewire_shard.service.model_files import collect_model_files
from pagewire_shard.service.model_vocabulary import vocabulary_source
from pagewire_shard.service.preparations import Preparations
from pagewire_shard.service.readiness import Readiness
from pagewire_shard.service.shard_service import SERVICE_NAME, ShardService
from pagewire_shard.stepping.step_thread import StepThread

if TYPE_CHECKING:
    from pagewire_shard.service.metrics import ShardMetrics

logger = logging.getLogger(__name__)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # Two shards on one port would take turns in answering.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_SHARD_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_SHARD_MESSAGE_BYTES),
    # Routers ping often, also while idle; peers are our own, so that none is punished for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    # A router that hangs is noticed after keepalive_time + ping_timeout; keepalive_timeout has no effect in the core.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
)
CANCEL_GRACE_S = 1.0
HEALTH_POLL_S = 0.25


class ShardServer:
    """Listens at once, serves when the engine is built. The step thread is the caller's to start and to join."""

    def __init__(
        self,
        config: ShardConfig,
        model_dir: "Future[Path]",
        steps: StepThread,
        grammars: Grammars | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """grammars: the engine's, not yet opened; None: grammars are not served. recorder: takes what is prepared."""
        self._recorder = recorder
        self._config = config
        self._steps = steps
        self._grammars = grammars
        self._readiness = Readiness(steps, config.stall_timeout_s, self._unread_s)
        self._model_files = asyncio.ensure_future(_collect(model_dir, config.model))
        self._grammars_opened = asyncio.ensure_future(self._open_grammars(model_dir))
        self._service = ShardService(self._model_files)
        self._execute_service: ExecuteService | None = None
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._health = HealthEndpoint(
            SERVICE_NAME,
            is_ready=self._readiness.is_ready,
            is_alive=self._readiness.is_alive,
            poll_s=min(HEALTH_POLL_S, config.stall_timeout_s / 4),
        )
        self._http: HttpEndpoint | None = None
        self._metrics: ShardMetrics | None = None
        self.health_port: int | None = None
        """The port of the plaintext health service, after start()."""

    async def start(self) -> str:
        """Binds the ports; returns the address to connect to. Raises BadOption for one that cannot be had."""
        address = self._bind()
        await self._start_health()
        self._server.add_generic_rpc_handlers((self._service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._server.start()
        if self._config.metrics_port is not None:
            await self._start_http(self._config.metrics_port)
        return address

    async def open(self) -> shard_pb2.ShardInfo:
        """Waits for the engine and the model's files, then lets routers in. Raises whatever kept them from coming."""
        opening = (asyncio.wrap_future(self._steps.ready), self._model_files, self._grammars_opened)
        info, _, grammars = await asyncio.gather(*opening)
        info.serves_grammars = grammars is not None
        lease = Lease(info.incarnation, self._config.lease_term_s, time.monotonic)
        preparations = Preparations(grammars, self._recorder)
        self._execute_service = ExecuteService(
            self._steps, info, lease, preparations, stall_timeout_s=self._config.stall_timeout_s
        )
        self._service.open(self._execute_service, info)
        if self._metrics is not None:
            self._metrics.open(info, lease, self._execute_service, grammars)
        self._readiness.open()
        await self._health.publish()
        return info

    async def stop(self, drain_grace_s: float) -> None:
        """Lets the router go, within the grace; then ends all calls and the step thread's loop."""
        self._readiness.close()
        await self._health.publish()
        if self._execute_service is not None:
            await self._execute_service.drain(drain_grace_s)
        self._steps.stop()
        if self._http is not None:
            await self._http.stop()
        await self._server.stop(CANCEL_GRACE_S)
        if self._grammars is not None:
            await asyncio.to_thread(self._grammars.close)
        await self._health.stop()

    def _unread_s(self) -> float:
        return 0.0 if self._execute_service is None else self._execute_service.unread_s()

    async def _open_grammars(self, model_dir: "Future[Path]") -> Grammars | None:
        """The grammars, ready to use, if the model's tokenizer allows it.

        While the model loads, since llguidance keeps other threads from running for as long as it reads a tokenizer.
        """
        files = await asyncio.shield(self._model_files)
        if self._grammars is None:
            return None
        try:
            source = await asyncio.to_thread(vocabulary_source, await asyncio.wrap_future(model_dir), files)
            if source is None:
                return None
            await asyncio.to_thread(self._grammars.open, source)
        except UnusableTokenizer as error:
            logger.warning("structured output is not served: %s", error)
            return None
        return self._grammars

    def _bind(self) -> str:
        config, listen = self._config, self._config.listen
        try:
            if config.tls_cert is not None and config.tls_key is not None:
                credentials = server_credentials(config.tls_cert, config.tls_key, config.tls_client_ca)
                port = self._server.add_secure_port(listen, credentials)
            else:
                port = self._server.add_insecure_port(listen)
        except TlsError as error:
            raise BadOption(str(error)) from None
        except RuntimeError as error:
            raise BadOption(
                f"cannot listen on {listen}: the address is taken, malformed or not this machine's"
            ) from error
        return with_port(listen, port)

    async def _start_health(self) -> None:
        """Health in plaintext on a port of its own, since Kubernetes' probes know no TLS."""
        host, port = host_of(self._config.listen), self._config.health_port
        try:
            self.health_port = await self._health.start(host, port)
        except OSError as error:
            raise BadOption(f"cannot serve health on {host}:{port}: {error}") from error

    async def _start_http(self, port: int) -> None:
        from pagewire_shard.service.metrics import ShardMetrics

        host = host_of(self._config.listen)
        self._metrics = ShardMetrics(self._steps.stats, self._readiness.is_ready)
        pages = process_pages(
            render_metrics=self._metrics.render, is_alive=self._readiness.is_alive, state=self._readiness.state
        )
        self._http = HttpEndpoint(pages)
        try:
            bound = await self._http.start(host, port)
        except OSError as error:
            raise BadOption(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        logger.info("metrics on http://%s:%d/metrics", host, bound)


async def _collect(model_dir: "Future[Path]", model: str) -> dict[str, bytes]:
    directory = await asyncio.wrap_future(model_dir)
    return await asyncio.to_thread(collect_model_files, directory, model)
