"""Ends the span of a call, of whatever front, with the spans of its request below it."""

import time

from opentelemetry.trace import Span, Tracer
from pagewire_common.tracing import conventions as names

from pagewire_router.timeline import TraceContext
from pagewire_router.tracing.call_trace import CallTrace
from pagewire_router.tracing.request_attributes import request_attributes
from pagewire_router.tracing.request_spans import add_request_spans


def trace_context_of(span: Span) -> TraceContext:
    """The span as W3C trace context, for spans below it."""
    context = span.get_span_context()
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return TraceContext(traceparent, context.trace_state.to_header())


def finish_call_span(tracer: Tracer, span: Span, trace: CallTrace, start_ns: int, *, is_stream: bool) -> None:
    """Adds what is known of the call's request, and ends the span."""
    end_ns = time.time_ns()
    span.set_attributes(request_attributes(trace, is_stream=is_stream))
    first_token_ns = add_request_spans(tracer, span, trace.timeline, end_ns)
    if is_stream and first_token_ns is not None:
        span.set_attribute(names.RESPONSE_TIME_TO_FIRST_CHUNK, (first_token_ns - start_ns) / 1e9)
    span.end(end_ns)
