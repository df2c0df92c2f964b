"""Whether a child process that runs also works: its own word on its liveness, by gRPC's health protocol."""

import asyncio
from collections.abc import Awaitable, Callable

LIVENESS = "liveness"
"""The name under which routers and shards say that they make progress."""
INTERVAL_S = 2.0
TIMEOUT_S = 5.0
MAX_MISSES = 3
"""Probes in a row without the answer that it lives: so long may a loaded machine keep a child from answering."""

Probe = Callable[[str], Awaitable[bool]]
"""Asks a child at an address whether it lives. False: it says that it does not, or does not answer in time."""


async def is_alive(address: str) -> bool:
    """Asks the health service at a Unix socket. A child that does not know the question counts as alive."""
    # Late: the children start before any of this is needed.
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # A channel for each probe: a hung child's connection would be kept, and a new child listens elsewhere.
    async with grpc.aio.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        request = health_pb2.HealthCheckRequest(service=LIVENESS)
        try:
            response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def wait_until_dead(address: str, probe: Probe) -> None:
    """Returns when a child has not answered well MAX_MISSES times in a row."""
    misses = 0
    while misses < MAX_MISSES:
        await asyncio.sleep(INTERVAL_S)
        misses = 0 if await probe(address) else misses + 1
