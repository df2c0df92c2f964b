"""grpc.health.v1, on the public port and on a separate plaintext port. Both answer before the service is ready."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

LIVENESS = "liveness"
"""Service name whose status says that the process runs."""
STARTUP = "startup"
"""Service name whose status says that the service has been ready once: not before, it loads. All other names say
whether it is ready."""
POLL_S = 0.2
"""Time between two checks of the state."""
_log = logging.getLogger(__name__)


class HealthEndpoint:
    """The health service. It has a plaintext port, since Kubernetes' probes know neither TLS nor API keys."""

    def __init__(
        self,
        service_name: str,
        *,
        is_ready: Callable[[], bool],
        is_alive: Callable[[], bool] = lambda: True,
        poll_s: float = POLL_S,
    ) -> None:
        """service_name: name whose status follows is_ready, beside the empty name."""
        self.servicer = health.aio.HealthServicer()
        self._service_name = service_name
        self._is_ready = is_ready
        self._is_alive = is_alive
        self._poll_s = poll_s
        self._published: tuple[bool, bool] | None = None
        self._has_started = False
        self._server: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int | None, listen: str | None = None) -> int | None:
        """Starts to answer. Raises OSError.

        Args:
            port: port to listen on; 0 takes a free one; None: no port.
            listen: further address to answer on.

        Returns:
            The bound port; None if there is none.
        """
        await self.publish()
        self._watch = asyncio.create_task(self._follow(), name="health")
        if port is None and listen is None:
            return None
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        bound = None
        try:
            if listen is not None:
                self._server.add_insecure_port(listen)
            if port is not None:
                bound = self._server.add_insecure_port(address)
        except RuntimeError:
            raise OSError("the address is taken or not this machine's") from None
        await self._server.start()
        return bound

    async def publish(self) -> None:
        """Updates the statuses if the state has changed."""
        state = (self._is_ready(), self._is_alive())
        if state == self._published:
            return
        is_ready, is_alive = state
        if self._published is not None and self._published[0] != is_ready:
            _log.info("Health is now %s", "SERVING" if is_ready else "NOT_SERVING")
        self._published = state
        self._has_started |= is_ready
        states = {"": is_ready, self._service_name: is_ready, LIVENESS: is_alive, STARTUP: self._has_started}
        for name, is_so in states.items():
            statuses = health_pb2.HealthCheckResponse
            await self.servicer.set(name, statuses.SERVING if is_so else statuses.NOT_SERVING)

    async def stop(self) -> None:
        """Stops answering."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._server is not None:
            await self._server.stop(None)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.publish()
