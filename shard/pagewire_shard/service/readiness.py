"""grpc.health.v1: whether a plan would be run now, and whether the process makes progress."""

import asyncio

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from pagewire_shard.service.shard_service import SERVICE_NAME
from pagewire_shard.stepping.step_thread import StepThread

LIVENESS = "liveness"
"""The name under which the process says that it makes progress; "" and the service's name say that it is ready."""
CHECK_INTERVAL_S = 1.0
MAX_FAILED_IN_A_ROW = 8
"""Steps that may fail without one that works between them before the shard counts as dead: its device or its state is
broken, not a request."""


class Readiness:
    """Ready: the engine is built, the last step worked, work that waits makes progress, and nobody said stop.

    Alive: work that waits makes progress, epochs can begin, and not every step fails; so also while the model loads. A
    shard that is not is best started again.
    """

    def __init__(self, steps: StepThread, stall_timeout_s: float) -> None:
        self.health_servicer = health_aio.HealthServicer()
        self._steps = steps
        self._stall_timeout_s = stall_timeout_s
        self._opened = False
        self._last: tuple[bool, bool] | None = None

    def is_ready(self) -> bool:
        """Whether a plan would be run now."""
        return self._opened and not self._steps.stats.failed and self.is_alive()

    def is_alive(self) -> bool:
        """Whether the step thread makes progress, or has nothing to do, on a device that answers and works."""
        stats = self._steps.stats
        is_broken = stats.broken or stats.num_failed_in_a_row >= MAX_FAILED_IN_A_ROW
        return not is_broken and stats.stalled_s() < self._stall_timeout_s

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
        state = (self.is_ready(), self.is_alive())
        if state == self._last:
            return
        self._last = state
        status = health_pb2.HealthCheckResponse
        ready, alive = (status.SERVING if yes else status.NOT_SERVING for yes in state)
        await self.health_servicer.set("", ready)
        await self.health_servicer.set(SERVICE_NAME, ready)
        await self.health_servicer.set(LIVENESS, alive)

    async def watch(self) -> None:
        """Publishes what changes, until cancelled."""
        while True:
            await self.publish()
            await asyncio.sleep(min(CHECK_INTERVAL_S, self._stall_timeout_s / 4))
