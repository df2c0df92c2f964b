"""The spans that are made of a request's timeline."""

from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pagewire.v1 import inference_pb2
from pagewire_router.timeline import (
    Admitted,
    ChunkDone,
    ChunkPlanned,
    Ended,
    FailedOver,
    Preempted,
    Queued,
    Timeline,
    TimelineEvent,
    TraceContext,
)
from pagewire_router.tracing.call_trace import CallTrace
from pagewire_router.tracing.request_attributes import request_attributes
from pagewire_router.tracing.request_spans import add_request_spans

END_NS = 100


def spans_of(*events: tuple[int, TimelineEvent], tokenized_ns: tuple[int, int] | None = None) -> list[ReadableSpan]:
    """The call's span, which lasts from 0 to END_NS, first; then what was made of the timeline."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    call = tracer.start_span("call", start_time=0)
    timeline = Timeline(TraceContext(""))
    timeline.tokenized_ns = tokenized_ns
    timeline.events += events
    first_token_ns = add_request_spans(tracer, call, timeline, END_NS)
    call.end(END_NS)
    *children, call_span = exporter.get_finished_spans()
    assert first_token_ns == next((event.timestamp for event in call_span.events if event.name == "first_token"), None)
    assert all(span.parent and span.parent.span_id == call.get_span_context().span_id for span in children)
    return [call_span, *children]


def times(spans: list[ReadableSpan]) -> list[tuple[str, int | None, int | None]]:
    return [(span.name, span.start_time, span.end_time) for span in spans]


def events(call: ReadableSpan) -> list[tuple[str, int]]:
    return [(event.name, event.timestamp) for event in call.events]


def chunk(
    step: int, planned_ns: int, done_ns: int, *, has_sampled: bool = False, num_cached: int | None = None
) -> tuple[tuple[int, TimelineEvent], tuple[int, TimelineEvent]]:
    done = ChunkDone(step, 0, num_computed=64 * step, num_cached=num_cached, has_sampled=has_sampled)
    return (planned_ns, ChunkPlanned(step, 0, 64)), (done_ns, done)


def test_a_request_that_runs_through() -> None:
    plan_1, done_1 = chunk(1, 20, 30, num_cached=16)
    plan_2, done_2 = chunk(2, 25, 40, has_sampled=True)
    call, *spans = spans_of(
        (10, Queued("g")), (20, Admitted(1, 100)), plan_1, plan_2, done_1, done_2, (70, Ended(9)), tokenized_ns=(2, 5)
    )
    assert times(spans) == [
        ("tokenize", 2, 5),
        ("queue", 10, 20),
        ("prefill", 20, 30),
        ("prefill", 25, 40),
        ("decode", 40, 70),
    ]
    assert events(call) == [("first_token", 40)]
    assert call.attributes is not None
    assert call.attributes["gen_ai.usage.cache_read.input_tokens"] == 16


def test_preempted_while_a_step_runs_it_has_that_steps_token_and_waits() -> None:
    plan, done = chunk(1, 20, 35, has_sampled=True)
    again, done_again = chunk(5, 60, 70, has_sampled=True)
    call, *spans = spans_of(
        (10, Queued("g")),
        (20, Admitted(1, 100)),
        plan,
        (30, Preempted(0)),
        done,
        (60, Admitted(5, 101)),
        again,
        done_again,
        (90, Ended(4)),
    )
    assert times(spans) == [
        ("queue", 10, 20),
        ("prefill", 20, 35),
        ("queue", 30, 60),
        ("prefill", 60, 70),
        ("decode", 70, 90),
    ]
    assert events(call) == [("preemption", 30), ("first_token", 35), ("resume", 60)]


def test_a_lost_group_ends_what_it_ran_and_is_noted_once() -> None:
    plan, _ = chunk(1, 20, 0)
    call, *spans = spans_of(
        (10, Queued("a")),
        (20, Admitted(1, 100)),
        plan,
        (30, FailedOver(0)),
        (31, FailedOver(0)),
        (31, Queued("b")),
        (40, Admitted(7, 100)),
        (80, Ended(0)),
    )
    assert times(spans) == [("queue", 10, 20), ("prefill", 20, 30), ("queue", 30, 40)]
    assert events(call) == [("failover", 30), ("resume", 40)]
    groups = [span.attributes["pagewire.group.id"] for span in spans if span.attributes]
    assert groups == ["a", "a", "b"]


def test_what_is_open_ends_with_the_call() -> None:
    plan, _ = chunk(1, 20, 0)
    assert times(spans_of((10, Queued("g")), (20, Admitted(1, 100)), plan))[1:] == [
        ("queue", 10, 20),
        ("prefill", 20, END_NS),
    ]
    assert times(spans_of((10, Queued("g"))))[1:] == [("queue", 10, END_NS)]
    assert times(spans_of())[1:] == []


def test_a_request_that_ends_in_the_queue_has_waited_until_then() -> None:
    assert times(spans_of((10, Queued("g")), (50, Ended(0))))[1:] == [("queue", 10, 50)]


@pytest.mark.parametrize(("constraint", "kind"), [({"json": "{}"}, "json"), ({"regex": "a+"}, "text"), (None, None)])
def test_attributes_say_what_kind_of_output_was_asked_for(constraint, kind):
    params = inference_pb2.SamplingParams(structured_outputs=constraint)
    request = SimpleNamespace(params=params, priority=0, request_id="a", prompt_token_ids=[1])
    output = SimpleNamespace(num_tokens=1, finish_reasons=list)
    trace = CallTrace(Timeline(None), "tiny", inference_pb2.GenerateRequest(text="a"), request, output)
    assert request_attributes(trace, is_stream=False).get("gen_ai.output.type") == kind
