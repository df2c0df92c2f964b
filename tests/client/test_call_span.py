"""Spans of a client's calls, in a program that has set up OpenTelemetry and in one that has not."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pagewire.call_span import call_span

METHOD = "pagewire.v1.Inference/Generate"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """What the program has set up."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    return provider


@pytest.fixture
def finished(provider: TracerProvider) -> Callable[[], tuple[ReadableSpan, ...]]:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter.get_finished_spans


def test_a_call_has_a_client_span_under_the_programs_own(
    provider: TracerProvider, finished: Callable[[], tuple[ReadableSpan, ...]]
) -> None:
    with provider.get_tracer("app").start_as_current_span("work") as work:
        with call_span(METHOD, "dns:///pagewire.example:50051") as headers:
            pass
    span = finished()[0]
    assert (span.name, span.kind) == (METHOD, SpanKind.CLIENT)
    assert span.parent is not None
    assert span.parent.span_id == work.get_span_context().span_id
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "server.address": "pagewire.example",
        "server.port": 50051,
        "rpc.response.status_code": "OK",
    }
    ((key, traceparent),) = headers
    assert key == "traceparent"
    assert traceparent.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-0")


class Refused(grpc.aio.AioRpcError):
    """What grpc.aio raises for a status."""

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata())


@pytest.mark.parametrize(
    ("error", "status"),
    [(Refused(), "RESOURCE_EXHAUSTED"), (asyncio.CancelledError(), "CANCELLED"), (KeyError("x"), "UNKNOWN")],
)
def test_a_call_that_fails_says_how(
    finished: Callable[[], tuple[ReadableSpan, ...]], error: BaseException, status: str
) -> None:
    with suppress(type(error)), call_span(METHOD, "localhost:50051"):
        raise error
    (span,) = finished()
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == span.attributes["error.type"] == status
    assert span.status.status_code == StatusCode.ERROR


def test_leaving_a_stream_early_is_a_cancellation(finished: Callable[[], tuple[ReadableSpan, ...]]) -> None:
    def stream() -> Iterator[int]:
        with call_span(METHOD, "unix:/run/pagewire.sock"):
            yield 1
            yield 2

    events = stream()
    next(events)
    events.close()  # type: ignore[attr-defined]
    (span,) = finished()
    assert span.attributes is not None
    assert (span.attributes["rpc.response.status_code"], span.attributes["server.address"]) == (
        "CANCELLED",
        "/run/pagewire.sock",
    )


def test_a_program_that_has_set_up_nothing_sends_no_headers() -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    with call_span(METHOD, "localhost:50051") as headers:
        assert headers == ()


def test_a_program_without_opentelemetry_does_not_load_it() -> None:
    script = (
        "import sys\n"
        "from pagewire.call_span import call_span\n"
        "with call_span('S/M', 'localhost:1') as headers:\n"
        "    assert headers == ()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=180)
