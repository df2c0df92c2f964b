"""Spans that a router and a shard export while they serve, as an OTLP receiver gets them."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import pytest
from cluster import Service, eventually, free_port, serve
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from otlp_receiver import CLIENT, ERROR, INTERNAL, SERVER, UNSET, OtlpReceiver, ReceivedSpan, otlp_receiver
from pagewire import AsyncClient, SamplingParams
from pagewire.v1 import inference_pb2, inference_pb2_grpc

GENERATE = "pagewire.v1.Inference/Generate"
CHUNK = 64
FLAGS = ("--max-num-batched-tokens", str(CHUNK), "--block-size", "16", "--max-model-len", "512")
SMALL_POOL = ("--kv-cache-memory", str(40 * 16 * 2 * 6 * 4 * 32 * 4))
"""640 tokens of the demo model: two requests of 400 do not fit together."""
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Traced:
    """A server whose spans arrive here."""

    receiver: OtlpReceiver
    server: Service
    address: str

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of a trace, once both the call's and its last sequence's have come."""
        self.receiver.wait_for_span(trace_id=trace_id, kind=SERVER, service="pagewire-router")
        return self.receiver.spans(trace_id=trace_id)

    def whole_trace(self, trace_id: str, num_sequences: int = 1) -> list[ReceivedSpan]:
        """The same, when the shard has let go of all its sequences too."""
        self.receiver.wait_for(
            lambda: len(self.receiver.spans(trace_id=trace_id, name="sequence")) == num_sequences,
            f"{num_sequences} sequences in trace {trace_id}\n{self.server.log()}",
        )
        return self.trace(trace_id)


@dataclass(frozen=True)
class Call:
    """A traced call of a client that makes its own trace context."""

    trace_id: str
    metadata: tuple[tuple[str, str], ...]


def new_call(*, is_sampled: bool = True) -> Call:
    trace_id = secrets.token_hex(16)
    return Call(trace_id, (("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-0{int(is_sampled)}"),))


def request(num_prompt_tokens: int, max_tokens: int, **fields: object) -> inference_pb2.GenerateRequest:
    """Token ids that no other request shares, so that no prefix is cached."""
    ids = [1 + secrets.randbelow(150) for _ in range(num_prompt_tokens)]
    params = inference_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True, **fields)
    return inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=ids), sampling_params=params)


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with otlp_receiver() as receiver, ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # The environment of this server alone.
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
            patch.setenv("PYTHONPROFILEIMPORTTIME", "1")
            server = stack.enter_context(serve("demo", *FLAGS, *SMALL_POOL))
        yield Traced(receiver, server, server.wait_ready())


@pytest.fixture
async def stub(traced: Traced) -> AsyncIterator["inference_pb2_grpc.InferenceAsyncStub"]:
    async with grpc.aio.insecure_channel(traced.address) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


async def test_a_request_is_one_connected_trace_from_the_client_to_the_shard(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "app"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(traced.receiver.endpoint, insecure=True)))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    async with AsyncClient(traced.address, timeout_s=TIMEOUT_S) as client:
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        events = [event async for event in client.generate("Hello, my name is", params)]
    provider.shutdown()
    assert len(events) >= 3

    root = traced.receiver.wait_for_span(service="app")
    assert (root.name, root.kind, root.parent_id) == (GENERATE, CLIENT, "")
    spans = traced.whole_trace(root.trace_id)
    (call,) = [span for span in spans if span.parent_id == root.span_id]
    assert (call.service, call.name, call.kind) == ("pagewire-router", GENERATE, SERVER)
    assert [span.name for span in spans if span.parent_id == call.span_id and span.service == "pagewire-router"] == [
        "tokenize",
        "queue",
        "prefill",
        "decode",
    ]
    (sequence,) = [span for span in spans if span.parent_id == call.span_id and span.service == "pagewire-shard"]
    assert (sequence.name, sequence.kind) == ("sequence", SERVER)
    (prefill,) = [span for span in spans if span.parent_id == sequence.span_id]
    assert (prefill.service, prefill.name, prefill.kind) == ("pagewire-shard", "prefill", INTERNAL)
    assert len(spans) == 8
    assert all(root.start_ns <= span.start_ns <= span.end_ns for span in spans)
    assert call.event_names == ["first_token"]


async def test_the_spans_of_a_request_follow_one_another(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    call = new_call()
    await stub.Complete(request(10, 12), timeout=TIMEOUT_S, metadata=call.metadata)
    spans = {span.name: span for span in traced.trace(call.trace_id) if span.service == "pagewire-router"}
    rpc, queue, prefill, decode = (
        spans[name] for name in ("pagewire.v1.Inference/Complete", "queue", "prefill", "decode")
    )
    assert rpc.start_ns <= queue.start_ns <= queue.end_ns <= prefill.start_ns <= prefill.end_ns
    assert prefill.end_ns == decode.start_ns == rpc.events[0][0]
    assert decode.start_ns < decode.end_ns <= rpc.end_ns


async def test_a_call_says_what_was_asked_and_what_came_of_it_but_not_its_content(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    call = new_call()
    params = inference_pb2.SamplingParams(temperature=0.5, top_p=0.9, top_k=7, max_tokens=5, seed=3, ignore_eos=True)
    message = inference_pb2.GenerateRequest(request_id="r-1", text="The secret is", sampling_params=params)
    answer = [event async for event in stub.Generate(message, timeout=TIMEOUT_S, metadata=call.metadata)]
    spans = traced.whole_trace(call.trace_id)
    (span,) = [span for span in spans if span.kind == SERVER and span.service == "pagewire-router"]
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert attributes.pop("gen_ai.request.top_p") == pytest.approx(0.9)
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": GENERATE,
        "rpc.response.status_code": "OK",
        "server.address": traced.address.removeprefix("unix:"),
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "pagewire",
        "gen_ai.request.model": "demo",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": "r-1",
        "gen_ai.response.model": "demo",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": answer[0].started.num_prompt_tokens,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert span.status == UNSET
    assert "secret" not in repr(spans)
    router, shard = (
        next(s.resource for s in spans if s.service == name) for name in ("pagewire-router", "pagewire-shard")
    )
    assert all(resource["service.version"] and resource["service.instance.id"] for resource in (router, shard))
    assert (shard["pagewire.group.id"], shard["pagewire.tp.rank"]) == ("0", "0")


async def test_each_chunk_of_a_prompt_has_its_prefill_and_its_step_links_to_the_request(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    call = new_call()
    await stub.Complete(request(2 * CHUNK + 20, 8), timeout=TIMEOUT_S, metadata=call.metadata)
    spans = traced.whole_trace(call.trace_id)
    chunks = [span for span in spans if span.name == "prefill" and span.service == "pagewire-router"]
    assert [chunk.attributes["pagewire.tokens.computed"] for chunk in chunks] == [CHUNK, 2 * CHUNK, 2 * CHUNK + 20]
    (sequence,) = [span for span in spans if span.name == "sequence"]
    on_shard = [span for span in spans if span.parent_id == sequence.span_id]
    numbers = [chunk.attributes["pagewire.step.number"] for chunk in chunks]
    assert [chunk.attributes["pagewire.step.number"] for chunk in on_shard] == numbers
    for chunk in on_shard:
        ((trace_id, span_id),) = chunk.links
        (step,) = traced.receiver.spans(trace_id=trace_id)
        assert (step.name, step.service, step.span_id, step.parent_id) == ("step", "pagewire-shard", span_id, "")
        assert step.trace_id != call.trace_id
        assert step.links == ((call.trace_id, sequence.span_id),)
        assert step.attributes["pagewire.step.number"] == chunk.attributes["pagewire.step.number"]
        assert step.attributes["pagewire.step.tokens"] == chunk.attributes["pagewire.tokens.count"]


async def test_a_step_links_to_every_sampled_request_in_it_and_to_no_other(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    calls = [new_call(), new_call(is_sampled=False), new_call()]
    await asyncio.gather(
        *(stub.Complete(request(10, 150), timeout=TIMEOUT_S, metadata=call.metadata) for call in calls)
    )
    traces = {call.trace_id for call in calls}
    sampled = {
        (span.trace_id, span.span_id)
        for call in (calls[0], calls[2])
        for span in traced.whole_trace(call.trace_id)
        if span.name == "sequence"
    }
    links = [set(step.links) for step in traced.receiver.spans(name="step")]
    ours = [of_step for of_step in links if any(trace_id in traces for trace_id, _ in of_step)]
    assert sampled in ours
    assert set().union(*ours) == sampled
    assert not traced.receiver.spans(trace_id=calls[1].trace_id)


async def test_every_sequence_of_a_request_has_its_span(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    call = new_call()
    await stub.Complete(request(20, 8, n=3), timeout=TIMEOUT_S, metadata=call.metadata)
    spans = traced.whole_trace(call.trace_id, num_sequences=3)
    (rpc,) = [span for span in spans if span.kind == SERVER and span.service == "pagewire-router"]
    assert [span.parent_id for span in spans if span.name == "sequence"] == [rpc.span_id] * 3
    assert rpc.attributes["gen_ai.request.choice.count"] == 3
    assert rpc.attributes["gen_ai.response.finish_reasons"] == ["length"] * 3


async def test_a_preempted_request_waits_and_prefills_again_in_the_same_trace(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    calls = [new_call(), new_call()]
    await asyncio.gather(
        *(stub.Complete(request(CHUNK, 336), timeout=TIMEOUT_S, metadata=call.metadata) for call in calls)
    )
    rpcs = [
        span
        for call in calls
        for span in traced.trace(call.trace_id)
        if span.kind == SERVER and span.service == "pagewire-router"
    ]
    preempted = [rpc for rpc in rpcs if "preemption" in rpc.event_names]
    assert preempted, "the pool holds both requests: nothing was preempted"
    rpc = preempted[0]
    num_preemptions = rpc.event_names.count("preemption")
    assert rpc.event_names == ["first_token", *["preemption", "resume"] * num_preemptions]
    spans = traced.whole_trace(rpc.trace_id, num_sequences=1 + num_preemptions)
    own = [span for span in spans if span.parent_id == rpc.span_id and span.service == "pagewire-router"]
    queues = [span for span in own if span.name == "queue"]
    assert [span.attributes["pagewire.queue.reason"] for span in queues] == [
        "arrival",
        *["preemption"] * num_preemptions,
    ]
    decodes = [span for span in own if span.name == "decode"]
    assert len(decodes) == 1 + num_preemptions
    assert sum(span.attributes["pagewire.tokens.count"] for span in decodes) == 336
    preempted_ns, resumed_ns = rpc.events[1][0], rpc.events[2][0]
    assert (queues[1].start_ns, queues[1].end_ns) == (preempted_ns, resumed_ns)
    assert decodes[0].end_ns == preempted_ns < resumed_ns < decodes[1].start_ns


async def test_a_refused_call_is_no_error_of_the_server(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    call = new_call()
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Complete(inference_pb2.GenerateRequest(), timeout=TIMEOUT_S, metadata=call.metadata)
    (span,) = traced.trace(call.trace_id)
    assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert (span.status, "error.type" in span.attributes) == (UNSET, False)


async def test_a_call_that_runs_out_of_time_is_an_error(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    call = new_call()
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Complete(request(10, 480), timeout=0.15, metadata=call.metadata)
    spans = traced.trace(call.trace_id)
    (span,) = [span for span in spans if span.kind == SERVER and span.service == "pagewire-router"]
    assert span.attributes["rpc.response.status_code"] == span.attributes["error.type"] == "DEADLINE_EXCEEDED"
    assert span.status == ERROR


async def test_a_cancelled_call_ends_its_spans_and_is_no_error(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    call = new_call()
    stream = stub.Generate(request(10, 480), timeout=TIMEOUT_S, metadata=call.metadata)
    async for event in stream:
        if event.WhichOneof("event") == "delta":
            break
    stream.cancel()
    spans = traced.whole_trace(call.trace_id)
    (span,) = [span for span in spans if span.kind == SERVER and span.service == "pagewire-router"]
    assert (span.attributes["rpc.response.status_code"], span.status) == ("CANCELLED", UNSET)
    (decode,) = [other for other in spans if other.name == "decode"]
    assert 0 < decode.attributes["pagewire.tokens.count"] < 480
    assert decode.end_ns <= span.end_ns


async def test_requests_of_an_unsampled_parent_leave_no_spans(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    unsampled, sampled = new_call(is_sampled=False), new_call()
    for call in (unsampled, sampled):
        await stub.Complete(request(10, 4), timeout=TIMEOUT_S, metadata=call.metadata)
    traced.whole_trace(sampled.trace_id)
    assert not traced.receiver.spans(trace_id=unsampled.trace_id)


async def test_a_request_that_outlives_its_shard_says_so(
    traced: Traced, stub: "inference_pb2_grpc.InferenceAsyncStub"
) -> None:
    """The last test on the shared server: it ends the shard, and the supervisor starts another."""
    call = new_call()
    (shard,) = traced.server.children("pagewire_shard")
    tokens = 0
    async for event in stub.Generate(request(10, 480), timeout=TIMEOUT_S, metadata=call.metadata):
        if tokens == 0 and event.delta.token_ids:
            os.kill(shard, signal.SIGKILL)
        tokens += len(event.delta.token_ids)
    assert tokens == 480
    spans = traced.whole_trace(call.trace_id)
    (rpc,) = [span for span in spans if span.kind == SERVER and span.service == "pagewire-router"]
    assert rpc.event_names == ["first_token", "failover", "resume"]
    queues = [span for span in spans if span.name == "queue"]
    assert [span.attributes["pagewire.queue.reason"] for span in queues] == ["arrival", "failover"]
    assert (queues[1].start_ns, queues[1].end_ns) == (rpc.events[1][0], rpc.events[2][0])


def imported(server: Service) -> set[str]:
    """Packages that a server's processes have imported, by what PYTHONPROFILEIMPORTTIME makes them say."""
    lines = [line for line in server.errors.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


async def test_opentelemetry_is_imported_only_if_traces_are_asked_for(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"opentelemetry", "pagewire_router", "pagewire_shard", "torch"} <= imported(traced.server)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with serve("demo", *FLAGS, *SMALL_POOL) as server:
        async with AsyncClient(server.wait_ready(), timeout_s=TIMEOUT_S) as client:
            await client.complete("Hello", SamplingParams(max_tokens=4))
        eventually(lambda: "torch" in imported(server), "the processes say what they import")
        assert {"pagewire_router", "pagewire_shard"} <= imported(server)
        assert "opentelemetry" not in imported(server)


async def test_a_dead_endpoint_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with serve("demo", *FLAGS, *SMALL_POOL) as server:
        address = server.wait_ready()
        async with AsyncClient(address, timeout_s=TIMEOUT_S) as client:
            params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
            for _ in range(3):
                output = await client.complete("Hello, my name is", params)
                assert len(output.outputs[0].token_ids) == 200
        assert server.stop() == 0
        assert "Traceback" not in server.errors, server.log()
