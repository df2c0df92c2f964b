"""Client spans of OpenTelemetry. They are made only in programs that have set it up; others do not load it."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import grpc.aio

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


@contextmanager
def call_span(method: str, target: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """Makes a client span around one call, by the conventions for RPC; yields headers that carry its context.

    method: full name, such as pagewire.v1.Inference/Generate. The span's parent is the program's current span. An
    exception sets the span's status to that of the error.
    """
    tracer = _tracer()
    if tracer is None:
        yield ()
        return
    span, headers = _start(tracer, method, target)
    status = "UNKNOWN"
    try:
        yield headers
        status = "OK"
    except grpc.aio.AioRpcError as error:
        status = error.code().name
        raise
    except (GeneratorExit, asyncio.CancelledError):
        status = "CANCELLED"
        raise
    finally:
        _end(span, status)


def _tracer() -> "Tracer | None":
    """Returns the tracer; None if the program has not set a tracer provider."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return None
    tracer: Tracer = provider.get_tracer("pagewire", metadata.version("pagewire"))
    return tracer


def _start(tracer: "Tracer", method: str, target: str) -> "tuple[Span, tuple[tuple[str, str], ...]]":
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind, set_span_in_context

    attributes = {"rpc.system.name": "grpc", "rpc.method": method, **_server(target)}
    span = tracer.start_span(method, kind=SpanKind.CLIENT, attributes=attributes)
    headers: dict[str, str] = {}
    propagate.inject(headers, set_span_in_context(span))
    return span, tuple(headers.items())


def _end(span: "Span", status: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("rpc.response.status_code", status)
    if status != "OK":
        span.set_attribute("error.type", status)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _server(target: str) -> dict[str, str | int]:
    """Returns the host and port of a call, from "host:port", "dns:///name:port" or "unix:PATH"."""
    if target.startswith("unix:"):
        return {"server.address": target.removeprefix("unix:")}
    host, _, port = target.rpartition("/")[2].rpartition(":")
    return {"server.address": host.strip("[]"), "server.port": int(port)} if port.isdecimal() else {}
