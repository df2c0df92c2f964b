"""When a call arrived: noted when gRPC has its headers, which is before its message is read and decoded.

A call that waits for the event loop before that is not seen to wait. gRPC hands over one call for each turn of the
loop, so that of calls that come at the same instant each looks about half a millisecond younger than the last.
"""

import time
from contextvars import ContextVar

import grpc

_arrival_s: ContextVar[float] = ContextVar("arrival_s")


def call_arrival_s() -> float:
    """time.monotonic() of the arrival of the call that this task serves."""
    return _arrival_s.get()


class ArrivalNote(grpc.GenericRpcHandler):
    """Notes the arrival of the calls to a service. gRPC asks for the handler in the task that will run it."""

    def __init__(self, service: grpc.GenericRpcHandler) -> None:
        self._service = service

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """See grpc.GenericRpcHandler."""
        _arrival_s.set(time.monotonic())
        return self._service.service(handler_call_details)
