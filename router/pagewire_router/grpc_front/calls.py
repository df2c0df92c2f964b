"""Handles calls before the service sees them: checks keys and tokens, notes arrivals, refuses calls.

gRPC looks for the handler of a call in the task that will run it. What interceptors and handlers learn of a call is
therefore kept in context variables, and put together by new_call().
"""

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from pagewire_router.admission.call import Call
from pagewire_router.admission.credentials import Credentials
from pagewire_router.caller import Caller, Identity
from pagewire_router.errors import RouterError, Unauthenticated, Unavailable
from pagewire_router.grpc_front.rpc_status import end_with
from pagewire_router.timeline import TraceContext
from pagewire_router.tracing.call_trace import CallTrace

Context = grpc.aio.ServicerContext[bytes, bytes]
Count = Callable[[str, RouterError], None]
"""Counts a refused call to a method, which is given as a path, such as /pagewire.v1.Inference/Complete."""
NOT_OPEN_RETRY_S = 1.0
"""When to come back to a service that is not open yet."""

_arrival_s: ContextVar[float] = ContextVar("arrival_s")
_identity: ContextVar[Identity | None] = ContextVar("identity", default=None)
current_trace: ContextVar[CallTrace | None] = ContextVar("current_trace", default=None)
"""The trace of the call that this task serves; None: the call is not traced."""


def new_call(context: Context, *, is_tracing: bool) -> Call:
    """The call that this task serves.

    Args:
        is_tracing: this router decides which requests are traced. Otherwise what the client sent is passed on.
    """
    remaining_s = context.time_remaining()
    trace = current_trace.get()
    if trace is not None:
        trace_context: TraceContext | None = trace.timeline.trace_context
    else:
        trace_context = None if is_tracing else _sent_trace_context(context)
    return Call(
        caller=Caller.of(context.peer(), _identity.get()),
        arrival_s=_arrival_s.get(),
        deadline_s=None if remaining_s is None else time.monotonic() + remaining_s,
        trace_context=trace_context,
        trace=trace,
    )


def _sent_trace_context(context: Context) -> TraceContext | None:
    metadata = dict(context.invocation_metadata() or ())
    traceparent = metadata.get("traceparent")
    return TraceContext(str(traceparent), str(metadata.get("tracestate", ""))) if traceparent else None


class ServiceHandler(grpc.GenericRpcHandler):
    """A gRPC server's handler for one service. It answers UNAVAILABLE until the service is ready.

    It notes the arrival of calls, which is when gRPC has their headers, before their messages are read and decoded. The
    time that a call waits for the event loop before that is not seen. gRPC hands over calls one by one, each
    two or three turns of the loop after the last, so that of calls that come at the same instant each looks about half
    a millisecond younger than the last.
    """

    def __init__(self, service_name: str, why_closed: str, count: Count, on_call: Callable[[], None]) -> None:
        """
        Args:
            why_closed: what callers are told until open().
            on_call: called when a call has come.
        """
        self._prefix = f"/{service_name}/"
        self._why_closed = why_closed
        self._count = count
        self._on_call = on_call
        self._service: grpc.GenericRpcHandler | None = None

    def open(self, service: grpc.GenericRpcHandler) -> None:
        """Lets calls through from now on."""
        self._service = service

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """See grpc.GenericRpcHandler."""
        if self._service is not None:
            _arrival_s.set(time.monotonic())
            self._on_call()
            return self._service.service(handler_call_details)
        if handler_call_details.method.startswith(self._prefix):
            error = Unavailable(self._why_closed, retry_after_s=NOT_OPEN_RETRY_S)
            return refusing_handler(handler_call_details.method, error, self._count)
        return None


class CredentialsInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls through that carry a known key or a valid token, and calls to open services."""

    def __init__(self, credentials: Credentials, open_services: tuple[str, ...], count: Count) -> None:
        """open_services: full names of the services that need none, such as health."""
        self._credentials = credentials
        self._open = tuple(f"/{service}/" for service in open_services)
        self._count = count

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of a call, or one that refuses it."""
        method = handler_call_details.method
        if not method.startswith(self._open):
            headers = dict(handler_call_details.invocation_metadata or ())
            try:
                _identity.set(self._credentials.check(str(headers.get("authorization", ""))))
            except Unauthenticated as error:
                return refusing_handler(method, error, self._count)
        return await continuation(handler_call_details)


def refusing_handler(method: str, error: RouterError, count: Count) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """A handler that counts the call and refuses it with the error.

    A call that ends without an answer looks the same whether or not its answer is a stream. The handler takes a stream
    of requests, so that none of them is read (see reception.py).
    """

    async def refuse(_requests: object, context: Context) -> None:
        count(method, error)
        await end_with(context, error)

    return grpc.stream_unary_rpc_method_handler(refuse)
