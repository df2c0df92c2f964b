"""grpc.health.v1: "" says that the process lives, the service's name says that a plan would be run now."""

import asyncio

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from pagewire_shard.shard_service import SERVICE_NAME
from pagewire_shard.step_thread import StepThread

CHECK_INTERVAL_S = 1.0


class Readiness:
    """Ready: the engine is built, the last step worked, work that waits makes progress, and nobody said stop."""

    def __init__(self, steps: StepThread, stall_timeout_s: float) -> None:
        self.health_servicer = health_aio.HealthServicer()
        self._steps = steps
        self._stall_timeout_s = stall_timeout_s
        self._opened = False
        self._last: bool | None = None

    def is_ready(self) -> bool:
        """Whether a plan would be run now."""
        stats = self._steps.stats
        return self._opened and not stats.failed and stats.stalled_s() < self._stall_timeout_s

    async def open(self) -> None:
        """The engine is built."""
        self._opened = True
        await self.publish()

    async def close(self) -> None:
        """The shard drains."""
        self._opened = False
        await self.publish()

    async def publish(self) -> None:
        """Tells the health service, if anything has changed."""
        ready = self.is_ready()
        if ready == self._last:
            return
        self._last = ready
        status = health_pb2.HealthCheckResponse
        await self.health_servicer.set(SERVICE_NAME, status.SERVING if ready else status.NOT_SERVING)
        await self.health_servicer.set("", status.SERVING)

    async def watch(self) -> None:
        """Publishes what changes, until cancelled."""
        while True:
            await self.publish()
            await asyncio.sleep(min(CHECK_INTERVAL_S, self._stall_timeout_s / 4))
