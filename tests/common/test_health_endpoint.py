"""grpc.health.v1 as Kubernetes' probes use it: on a port of its own, in plaintext, following the process."""

import socket

import grpc
import pytest
from health_probe import NOT_SERVING, SERVING, probe, states, until_states
from pagewire.serve.probe import LIVENESS as NAME_THAT_THE_CLIENT_ASKS_FOR
from pagewire_common.health_endpoint import LIVENESS, HealthEndpoint

SERVICE = "pagewire.v1.Test"


async def test_probes_follow_the_process() -> None:
    state = {"ready": False, "alive": True}
    endpoint = HealthEndpoint(SERVICE, is_ready=lambda: state["ready"], is_alive=lambda: state["alive"], poll_s=0.01)
    address = f"127.0.0.1:{await endpoint.start('127.0.0.1', 0)}"
    assert await states(address, SERVICE) == [NOT_SERVING, NOT_SERVING, SERVING]
    state["ready"] = True
    await until_states(address, SERVICE, [SERVING, SERVING, SERVING])
    state["ready"] = state["alive"] = False
    await until_states(address, SERVICE, [NOT_SERVING, NOT_SERVING, NOT_SERVING])
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await probe(address, "no.such.Service")
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
    await endpoint.stop()


async def test_a_change_is_told_at_once_when_it_is_published() -> None:
    state = {"ready": True}
    endpoint = HealthEndpoint(SERVICE, is_ready=lambda: state["ready"], poll_s=86_400)
    address = f"127.0.0.1:{await endpoint.start('127.0.0.1', 0)}"
    assert await states(address, SERVICE) == [SERVING, SERVING, SERVING]
    state["ready"] = False
    await endpoint.publish()
    assert await states(address, SERVICE) == [NOT_SERVING, NOT_SERVING, SERVING]
    await endpoint.stop()


async def test_a_further_address_may_be_a_unix_socket(tmp_path) -> None:
    endpoint = HealthEndpoint(SERVICE, is_ready=lambda: True)
    assert await endpoint.start("127.0.0.1", None, f"unix:{tmp_path}/health.sock") is None
    assert await states(f"unix:{tmp_path}/health.sock", SERVICE) == [SERVING, SERVING, SERVING]
    await endpoint.stop()


async def test_an_address_that_is_taken_cannot_be_had() -> None:
    endpoint = HealthEndpoint(SERVICE, is_ready=lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="taken"):
            await endpoint.start("127.0.0.1", taken.getsockname()[1])
    await endpoint.stop()


def test_the_client_probes_by_the_name_that_processes_answer_to() -> None:
    assert NAME_THAT_THE_CLIENT_ASKS_FOR == LIVENESS
