"""An OTLP trace receiver within the test: what the processes under test export arrives here as plain records."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from cluster import eventually
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

ARRIVAL_TIMEOUT_S = 60.0
SERVER, CLIENT, INTERNAL = (
    trace_pb2.Span.SPAN_KIND_SERVER,
    trace_pb2.Span.SPAN_KIND_CLIENT,
    trace_pb2.Span.SPAN_KIND_INTERNAL,
)
UNSET, ERROR = trace_pb2.Status.STATUS_CODE_UNSET, trace_pb2.Status.STATUS_CODE_ERROR


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came; ids are hexadecimal."""

    resource: Mapping[str, Any]
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    events: tuple[tuple[int, str, Mapping[str, Any]], ...]
    """(time, name, attributes), in order of time."""
    links: tuple[tuple[str, str], ...]
    """(trace id, span id) of what it links to."""
    status: int
    status_message: str

    @property
    def service(self) -> str:
        """The service.name of the process it is from."""
        return str(self.resource["service.name"])

    @property
    def event_names(self) -> list[str]:
        return [name for _, name, _ in self.events]


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects what is exported to it. Spans arrive in any order, so tests wait for those they need."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._spans: list[ReceivedSpan] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The RPC."""
        received = [
            _record(span, _values(resource_spans.resource.attributes))
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
        with self._lock:
            self._spans += received
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, **fields: object) -> list[ReceivedSpan]:
        """Returns the spans received so far that have these fields, in order of their start."""
        with self._lock:
            found = [span for span in self._spans if all(getattr(span, key) == value for key, value in fields.items())]
        return sorted(found, key=lambda span: (span.start_ns, span.end_ns))

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Waits until the received spans meet the condition."""
        eventually(lambda: bool(condition()), what, ARRIVAL_TIMEOUT_S)

    def wait_for_span(self, **fields: object) -> ReceivedSpan:
        """The first span with these fields."""
        self.wait_for(lambda: self.spans(**fields), f"a span with {fields}")
        return self.spans(**fields)[0]


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """Receives on a free port of this machine."""
    receiver = OtlpReceiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()


def _record(span: trace_pb2.Span, resource: Mapping[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        resource=resource,
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        events=_events(span),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        status=span.status.code,
        status_message=span.status.message,
    )


def _events(span: trace_pb2.Span) -> tuple[tuple[int, str, Mapping[str, Any]], ...]:
    events = [(event.time_unix_nano, event.name, _values(event.attributes)) for event in span.events]
    return tuple(sorted(events, key=lambda event: event[0]))


def _values(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, str(kind))
