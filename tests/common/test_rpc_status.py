"""Errors as gRPC statuses: what their details say, and that any text can be sent."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf import message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from pagewire_common.rpc_status import abort_with, new_status

CODE = grpc.StatusCode.FAILED_PRECONDITION


def unpacked(status: status_pb2.Status) -> list[message.Message]:
    kinds = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    }
    details = []
    for packed in status.details:
        details.append(kinds[packed.TypeName()]())
        assert packed.Unpack(details[-1])
    return details


def test_a_status_says_what_programs_need() -> None:
    status = new_status(
        CODE,
        "held",
        reason="LEASE_HELD",
        domain="pagewire",
        metadata={"holder": "r"},
        retry_after_s=1.25,
        violations=[("top_p", "is 2; accepted: 0 to 1")],
    )
    info, retry, bad_request = unpacked(status)
    assert (status.code, status.message) == (CODE.value[0], "held")
    assert (info.reason, info.domain, dict(info.metadata)) == ("LEASE_HELD", "pagewire", {"holder": "r"})
    assert retry.retry_delay.ToMilliseconds() == 1250
    assert [(v.field, v.description) for v in bad_request.field_violations] == [("top_p", "is 2; accepted: 0 to 1")]


def test_a_status_without_more_to_say_has_its_reason_alone() -> None:
    (info,) = unpacked(new_status(CODE, "no", reason="R", domain="d"))
    assert (info.reason, info.domain, dict(info.metadata)) == ("R", "d", {})


@asynccontextmanager
async def refusing(status: status_pb2.Status) -> AsyncIterator[Callable[[], "grpc.aio.UnaryUnaryCall[bytes, bytes]"]]:
    """A method that ends every call with the status."""

    async def refuse(_request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        await abort_with(context, CODE, status)

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(refuse)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Refuse": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield lambda: channel.unary_unary("/test/Refuse")(b"", timeout=30)
    await server.stop(None)


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "é" * 10_000_000, "x" * 10_000_000, "\x1b[31m\r\x7f", "日本\udcff"])
@pytest.mark.parametrize("num_violations", [0, 50])
async def test_any_text_can_be_refused_with(text: str, num_violations: int) -> None:
    """The refusal must not fail itself, whatever it quotes of the request."""
    violations = [(text, text)] * num_violations
    status = new_status(CODE, text, reason="R", domain="d", metadata={"k": text}, violations=violations)
    async with refusing(status) as call:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call()
    assert caught.value.code() == CODE
    assert 0 < len(caught.value.details() or "") <= 500
    received = rpc_status.from_call(caught.value)
    assert received == status
    assert received.ByteSize() <= 3000
    if num_violations:
        assert unpacked(received)[-1].field_violations, "at least one fits"
