"""Stands before a service that is not there yet: until it is opened, calls are told to come back."""

import grpc

from pagewire_router.errors import Unavailable
from pagewire_router.grpc_front.refusal import Count, refusing_handler

RETRY_AFTER_S = 1.0


class ServiceGate(grpc.GenericRpcHandler):
    """A gRPC server's handler for one service."""

    def __init__(self, service_name: str, why_closed: str, count: Count) -> None:
        """why_closed: what callers are told until open()."""
        self._prefix = f"/{service_name}/"
        self._why_closed = why_closed
        self._count = count
        self._service: grpc.GenericRpcHandler | None = None

    def open(self, service: grpc.GenericRpcHandler) -> None:
        """Lets calls through from now on."""
        self._service = service

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """See grpc.GenericRpcHandler."""
        if self._service is not None:
            return self._service.service(handler_call_details)
        if handler_call_details.method.startswith(self._prefix):
            error = Unavailable(self._why_closed, retry_after_s=RETRY_AFTER_S)
            return refusing_handler(handler_call_details.method, error, self._count)
        return None
