"""Traces requests: a server span for each, with the spans of the generated request below it."""

import logging
import time

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue
from pagewire_common.sendable_text import shorten
from pagewire_common.tracing import conventions as names

from pagewire_router.http_front.app import OTHER_ROUTE
from pagewire_router.http_front.exchange import Exchange, Scope
from pagewire_router.timeline import Timeline
from pagewire_router.tracing.addresses import client_attributes, server_attributes
from pagewire_router.tracing.call_spans import finish_call_span, trace_context_of
from pagewire_router.tracing.call_trace import CallTrace
from pagewire_router.tracing.request_attributes import MAX_CHARS

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
"""Methods that the conventions know; callers can make up others."""
OTHER_METHOD, NAME_OF_OTHER_METHODS = "_OTHER", "HTTP"
_log = logging.getLogger(__name__)


class HttpTracing:
    """Begins the spans of requests."""

    def __init__(self, tracer: Tracer, listen: str) -> None:
        """listen: where the server serves, host:port."""
        self._tracer = tracer
        self._attributes = server_attributes(listen)

    def start(self, exchange: Exchange, scope: Scope, route: str, peer: str) -> "TracedExchange | None":
        """Begins the span of a request; None: it is not traced.

        Args:
            route: its route, after which the span is named, or OTHER_ROUTE: callers can make up paths.
            peer: the client's address, as gRPC writes it.
        """
        start_ns = time.time_ns()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers.items()}
        is_known = exchange.method in METHODS
        attributes: dict[str, AttributeValue] = {
            names.HTTP_REQUEST_METHOD: exchange.method if is_known else OTHER_METHOD,
            names.URL_SCHEME: scope["scheme"],
            names.URL_PATH: shorten(exchange.path, MAX_CHARS),
            names.NETWORK_PROTOCOL_VERSION: scope["http_version"],
            **self._attributes,
            **client_attributes(peer),
        }
        if route != OTHER_ROUTE:
            attributes[names.HTTP_ROUTE] = route
        if "user-agent" in headers:
            attributes[names.USER_AGENT] = shorten(headers["user-agent"], MAX_CHARS)
        parent = propagate.extract(headers, Context())
        method = exchange.method if is_known else NAME_OF_OTHER_METHODS
        name = method if route == OTHER_ROUTE else f"{method} {route}"
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=start_ns)
        return TracedExchange(self._tracer, span, start_ns) if span.is_recording() else None


class TracedExchange:
    """A request with its span."""

    def __init__(self, tracer: Tracer, span: Span, start_ns: int) -> None:
        self.trace = CallTrace(Timeline(trace_context_of(span)))
        self._tracer = tracer
        self._span = span
        self._start_ns = start_ns

    def finish(self, status: int, *, is_stream: bool) -> None:
        """Ends the span when the answer has ended. Raises nothing: a bug here must not take the answer away."""
        try:
            self._span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status)
            if status >= 500:
                self._span.set_attribute(names.ERROR_TYPE, str(status))
                self._span.set_status(Status(StatusCode.ERROR))
            finish_call_span(self._tracer, self._span, self.trace, self._start_ns, is_stream=is_stream)
        except Exception:
            _log.exception("A request could not be traced")
