"""What grpc.health.v1 answers, as a probe asks: in plaintext, on a connection of its own."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def probe(address: str, service: str) -> "health_pb2.HealthCheckResponse.ServingStatus.ValueType":
    """The status of one service. Raises AioRpcError for names that are not known."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(channel).Check(request, wait_for_ready=True, timeout=10)).status


async def states(address: str, service: str) -> list[int]:
    """Readiness under both of its names, and liveness."""
    return [await probe(address, name) for name in ("", service, "liveness")]


async def until_states(address: str, service: str, expected: list[int]) -> None:
    """Waits until the states are as expected."""
    async with asyncio.timeout(30):
        while await states(address, service) != expected:
            await asyncio.sleep(0.02)
