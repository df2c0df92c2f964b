"""Traces the calls of the public service: a server span for each call, with the request's spans below it.

Unary handlers, and streaming handlers that write by themselves, are coroutines that return when the call is answered.
One wrapper therefore serves both.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from pagewire_common.tracing import conventions as names

from pagewire_router.grpc_front.calls import current_trace
from pagewire_router.timeline import Timeline
from pagewire_router.tracing.addresses import client_attributes, server_attributes
from pagewire_router.tracing.call_spans import finish_call_span, trace_context_of
from pagewire_router.tracing.call_trace import CallTrace

Handler = Callable[[Any, Any], Awaitable[Any]]
_log = logging.getLogger(__name__)


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of one service; those of others, such as health, are left alone."""

    def __init__(self, tracer: Tracer, service: str, methods: Iterable[str], listen: str) -> None:
        """
        Args:
            methods: of the service. Callers can make up others, and a span is named after its method.
            listen: where the server serves, host:port or unix:PATH.
        """
        self._tracer = tracer
        self._methods = frozenset(f"/{service}/{method}" for method in methods)
        self._attributes = {names.RPC_SYSTEM_NAME: "grpc", **server_attributes(listen)}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of a call, wrapped so that it is traced."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method not in self._methods:
            return handler
        is_stream = handler.response_streaming
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if is_stream else 'unary'}"
        return handler._replace(**{kind: self._traced(method[1:], getattr(handler, kind), is_stream=is_stream)})

    def _traced(self, method: str, handler: Handler, *, is_stream: bool) -> Handler:
        async def call(request: Any, context: Any) -> Any:
            start_ns = time.time_ns()
            span = self._start(method, context, start_ns)
            if not span.is_recording():
                return await handler(request, context)
            trace = CallTrace(Timeline(trace_context_of(span)))
            current_trace.set(trace)
            status = "UNKNOWN"
            try:
                answer = await handler(request, context)
                status = "OK"
                return answer
            except asyncio.CancelledError:
                remaining_s = context.time_remaining()
                status = "CANCELLED" if remaining_s is None or remaining_s > 0 else "DEADLINE_EXCEEDED"
                raise
            finally:
                try:
                    _set_status(span, status if context.code() is None else context.code().name, context.details())
                    span.set_attributes(client_attributes(context.peer()))
                    finish_call_span(self._tracer, span, trace, start_ns, is_stream=is_stream)
                except Exception:  # A bug of ours must not take the client's answer away.
                    _log.exception("A call could not be traced")

        return call

    def _start(self, method: str, context: Any, start_ns: int) -> Span:
        headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        parent = propagate.extract(headers, Context())
        attributes = {names.RPC_METHOD: method, **self._attributes}
        return self._tracer.start_span(method, parent, SpanKind.SERVER, attributes, start_time=start_ns)


def _set_status(span: Span, status: str, description: str | None) -> None:
    span.set_attribute(names.RPC_RESPONSE_STATUS_CODE, status)
    if status in names.SERVER_ERRORS:
        span.set_attribute(names.ERROR_TYPE, status)
        span.set_status(Status(StatusCode.ERROR, description))
