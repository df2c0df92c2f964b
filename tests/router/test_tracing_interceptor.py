"""Server spans of calls on a real gRPC server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import StatusCode
from otlp_receiver import otlp_receiver
from pagewire.v1 import inference_pb2
from pagewire_router.grpc_front.calls import current_trace
from pagewire_router.grpc_front.tracing_interceptor import TracingInterceptor
from pagewire_router.tracing.request_attributes import MAX_CHARS

SERVICE = "test.v1.Echo"
TIMEOUT_S = 60.0
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("tracestate", "vendor=x"), ("baggage", "tenant=a"))


class Refusal(grpc.aio.ServerInterceptor):
    """Stands behind the tracing, and refuses what bears no name."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def refuse(request: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        if ("anonymous", "") in {(key, value) for key, value in handler_call_details.invocation_metadata}:
            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


class BaggageTaker(SpanProcessor):
    """Sees the context in which spans start, as a program's own processors do."""

    def __init__(self) -> None:
        self.tenants: list[object] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.tenants.append(baggage.get_baggage("tenant", parent_context))


@dataclass
class Echo:
    """A traced server with handlers of both kinds, and what came of its calls."""

    channel: grpc.aio.Channel
    exporter: InMemorySpanExporter
    baggage: BaggageTaker
    contexts: list[str]
    """The traceparent of each call's own span, as its handler saw it."""

    async def stream(self, request: bytes, **options: Any) -> list[bytes]:
        return [message async for message in self.channel.unary_stream(f"/{SERVICE}/Stream")(request, **options)]

    async def unary(self, request: bytes, **options: Any) -> bytes:
        answer: bytes = await self.channel.unary_unary(f"/{SERVICE}/Unary")(request, **options)
        return answer

    async def span(self) -> ReadableSpan:
        """The span of the one call made; it may end just after its client has the answer."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self.exporter.get_finished_spans():
                await asyncio.sleep(0.005)
        (span,) = self.exporter.get_finished_spans()
        return span


@asynccontextmanager
async def echo_server(sampler: Any = None, interceptors: Sequence[Any] = ()) -> AsyncIterator[Echo]:
    exporter, taker = InMemorySpanExporter(), BaggageTaker()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(taker)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    contexts: list[str] = []

    def note() -> None:
        trace = current_trace.get()
        if trace is not None:
            contexts.append(trace.timeline.trace_context.traceparent)

    async def stream(request: bytes, context: Any) -> None:
        note()
        for byte in request:
            await context.write(bytes([byte]))

    async def unary(request: bytes, context: Any) -> bytes:
        note()
        if request == b"abort":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "come back later")
        if request == b"raise":
            raise KeyError(request)
        return request

    handlers = {
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
    }
    tracing = TracingInterceptor(provider.get_tracer("test"), SERVICE, tuple(handlers), "127.0.0.1:50051")
    server = grpc.aio.server(interceptors=[tracing, *interceptors])
    for service in (SERVICE, "other.v1.Echo"):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Echo(channel, exporter, taker, contexts)
    await server.stop(None)


async def test_a_stream_that_its_handler_writes_is_one_span_under_the_clients() -> None:
    async with echo_server() as echo:
        assert await echo.stream(b"abc", metadata=HEADERS) == [b"a", b"b", b"c"]
        span = await echo.span()
    assert span.name == f"{SERVICE}/Stream"
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert span.context.trace_state.get("vendor") == "x"
    assert echo.contexts == [f"00-{TRACE_ID}-{span.context.span_id:016x}-01"]
    assert echo.baggage.tenants == ["a"]
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == "OK"
    assert span.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize(
    ("request_bytes", "status", "description"),
    [(b"abort", "UNAVAILABLE", "come back later"), (b"raise", "UNKNOWN", "")],
)
async def test_a_call_that_fails_has_an_error(request_bytes: bytes, status: str, description: str) -> None:
    async with echo_server() as echo:
        with pytest.raises(grpc.aio.AioRpcError):
            await echo.unary(request_bytes)
        span = await echo.span()
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == span.attributes["error.type"] == status
    assert (span.status.status_code, span.status.description or "") == (StatusCode.ERROR, description)


async def test_a_call_that_an_interceptor_refuses_is_traced_and_no_error() -> None:
    async with echo_server(interceptors=[Refusal()]) as echo:
        with pytest.raises(grpc.aio.AioRpcError):
            await echo.stream(b"abc", metadata=(("anonymous", ""),))
        span = await echo.span()
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == "UNAUTHENTICATED"
    assert span.status.status_code == StatusCode.UNSET


async def test_a_call_that_is_not_sampled_is_served_without_a_timeline() -> None:
    async with echo_server(sampler=TraceIdRatioBased(0.0)) as echo:
        assert await echo.unary(b"abc", metadata=HEADERS) == b"abc"
        assert echo.contexts == []
        assert not echo.exporter.get_finished_spans()


async def test_a_call_that_cannot_be_traced_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("pagewire_router.tracing.call_spans.add_request_spans", fail)
    async with echo_server() as echo:
        assert await echo.unary(b"abc") == b"abc"
    assert "A call could not be traced" in caplog.text


async def test_other_services_are_left_alone() -> None:
    async with echo_server() as echo:
        assert await echo.channel.unary_unary("/other.v1.Echo/Unary")(b"abc") == b"abc"
        assert not echo.exporter.get_finished_spans()


@pytest.mark.parametrize(("sampler", "is_sampled"), [("always_on", True), ("always_off", False)])
async def test_a_router_that_traces_decides_for_its_shards(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, sampler: str, is_sampled: bool
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    async with serve(config={"trace_exporters": ("console",)}) as router:
        message = inference_pb2.GenerateRequest(text="Hello")
        assert [event async for event in router.stub.Generate(message, metadata=HEADERS)]
        (request,) = router.runner.requests
    if is_sampled:
        trace_id, span_id = request.trace_context.traceparent.split("-")[1:3]
        assert trace_id == TRACE_ID
        assert span_id != PARENT_ID
    else:
        assert (request.trace_context, request.timeline) == (None, None)


LONG = "x" * 3000


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("Complete", {"text": "Hello", "model": LONG}),
        ("Complete", {"text": "Hello", "request_id": LONG}),
        ("Complete", {"text": LONG, "sampling_params": inference_pb2.SamplingParams(stop=[LONG] * 4, max_tokens=2)}),
        ("Complete", {"chat": inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role=LONG, content=LONG)])}),
        (f"Complete{LONG}", {"text": "Hello"}),
    ],
    ids=["model", "request id", "stop strings", "role", "method"],
)
async def test_what_a_client_sends_makes_no_long_spans(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, fields: dict[str, Any]
) -> None:
    """Nor those of calls without a key, which anybody can send."""
    keys = tmp_path / "keys"
    keys.write_text("the-key")
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        async with serve(config={"trace_exporters": ("otlp_proto_grpc",), "api_keys": str(keys)}) as router:
            call = router.channel.unary_unary(f"/pagewire.v1.Inference/{method}")
            message = inference_pb2.GenerateRequest(**fields).SerializeToString()
            for metadata in ((("authorization", "Bearer the-key"),), ()):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(message, metadata=metadata)
        spans = receiver.spans()
    assert bool(spans) == (method == "Complete"), "methods that there are not are not traced"
    texts = [text for span in spans for text in (span.name, span.status_message, *map(str, span.attributes.values()))]
    assert max(map(len, texts), default=0) <= MAX_CHARS
    assert sum(map(len, texts)) <= 4000
