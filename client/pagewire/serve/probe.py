"""Asks a child process by gRPC's health protocol whether it makes progress."""

import asyncio
from collections.abc import Awaitable, Callable

LIVENESS = "liveness"
"""The health service's name under which routers and shards report that they make progress."""
INTERVAL_S = 2.0
TIMEOUT_S = 5.0
MAX_MISSES = 3
"""A child counts as hung after this many failed probes in a row; a loaded machine may delay an answer."""

Probe = Callable[[str], Awaitable[bool]]
"""Asks a child at an address whether it is alive. False: it says no, or does not answer in time."""


async def is_alive(address: str) -> bool:
    """Asks the health service at a Unix socket. A child that does not know the service name counts as alive."""
    # Imported here, because the children start before it is needed.
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # Each probe opens a channel: a kept one would still lead to a child that hangs after another has taken its place.
    async with grpc.aio.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        request = health_pb2.HealthCheckRequest(service=LIVENESS)
        try:
            response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def wait_until_dead(address: str, probe: Probe) -> None:
    """Returns when MAX_MISSES probes in a row have failed."""
    misses = 0
    while misses < MAX_MISSES:
        await asyncio.sleep(INTERVAL_S)
        misses = 0 if await probe(address) else misses + 1
