"""The spans that are made of plans and results."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pagewire.v1 import shard_pb2
from pagewire_shard.errors import StepFailed
from pagewire_shard.tracing.step_spans import StepSpans

TRACE_ID, REQUEST_SPAN_ID = 0xA1, 0xB2
SAMPLED = shard_pb2.TraceContext(traceparent=f"00-{TRACE_ID:032x}-{REQUEST_SPAN_ID:016x}-01", tracestate="k=v")
UNSAMPLED = shard_pb2.TraceContext(traceparent=f"00-{TRACE_ID:032x}-{REQUEST_SPAN_ID:016x}-00")
MALFORMED = shard_pb2.TraceContext(traceparent="00-nonsense-01")


class Shard:
    """Runs plans that a test writes, without a model."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        tracer = provider.get_tracer("test")
        self.observer = StepSpans(tracer, tracer)
        self._step = 0

    def plan(
        self,
        *,
        admits: dict[int, shard_pb2.TraceContext | None] | None = None,
        forks: dict[int, int] | None = None,
        releases: tuple[int, ...] = (),
        run: dict[int, int] | None = None,
    ) -> int:
        """admits: contexts by seq_id; forks: parents by child; run: budgets by seq_id. Returns the step's number."""
        self._step += 1
        plan = shard_pb2.StepPlan(step=self._step, release_seq_ids=releases)
        for seq_id, context in (admits or {}).items():
            plan.admits.add(seq_id=seq_id, trace_context=context)
        for child, parent in (forks or {}).items():
            plan.forks.add(parent_seq_id=parent, child_seq_id=child)
        plan.run_seq_ids.extend(run or {})
        plan.run_token_budgets.extend((run or {}).values())
        self.observer.on_plan(plan)
        return self._step

    def result(self, step: int, *sampled: bool, cached: int | None = None) -> None:
        """sampled: for each sequence of the run."""
        first = {} if cached is None else {"first_run_indices": [0], "num_cached_tokens": [cached]}
        result = shard_pb2.StepResult(
            step=step, num_sampled_tokens=map(int, sampled), num_computed_tokens=[10] * len(sampled), **first
        )
        self.observer.on_result(result)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


def test_a_sequence_lasts_from_admission_to_release() -> None:
    shard = Shard()
    shard.result(shard.plan(admits={1: SAMPLED}, run={1: 10}), True, cached=4)
    shard.result(shard.plan(run={1: 1}), True)
    assert not shard.spans("sequence")
    shard.plan(releases=(1,))
    (span,) = shard.spans("sequence")
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (TRACE_ID, REQUEST_SPAN_ID, True)
    assert span.context.trace_state.get("k") == "v"
    assert span.attributes == {"pagewire.sequence.id": 1, "pagewire.step.first": 1, "pagewire.step.last": 2}


def test_chunks_belong_to_their_sequence_and_link_to_their_step() -> None:
    shard = Shard()
    shard.result(shard.plan(admits={1: SAMPLED}, run={1: 10}), False, cached=4)
    shard.result(shard.plan(run={1: 6}), True)
    shard.result(shard.plan(run={1: 1}), True)
    shard.plan(releases=(1,))
    (sequence,) = shard.spans("sequence")
    chunks, steps = shard.spans("prefill"), shard.spans("step")
    assert [chunk.parent and chunk.parent.span_id for chunk in chunks] == [sequence.context.span_id] * 2
    assert [chunk.attributes and chunk.attributes.get("pagewire.tokens.cached") for chunk in chunks] == [4, None]
    for chunk, step in zip(chunks, steps, strict=False):
        assert [link.context.span_id for link in chunk.links] == [step.context.span_id]
        assert [link.context.span_id for link in step.links] == [sequence.context.span_id]
        assert (step.parent, step.start_time, step.end_time) == (None, chunk.start_time, chunk.end_time)


@pytest.mark.parametrize("context", [None, UNSAMPLED, MALFORMED], ids=["none", "unsampled", "malformed"])
def test_nothing_is_made_of_requests_that_are_not_sampled(context: shard_pb2.TraceContext | None) -> None:
    shard = Shard()
    shard.result(shard.plan(admits={1: context}, run={1: 10}), True)
    shard.result(shard.plan(run={1: 1}), True)
    shard.plan(releases=(1,))
    assert not [name for name in ("sequence", "prefill", "step") if shard.spans(name)]


def test_a_fork_belongs_to_its_parents_request() -> None:
    shard = Shard()
    shard.result(shard.plan(admits={1: SAMPLED, 2: None}, run={1: 10, 2: 10}), True, True)
    shard.plan(forks={3: 1, 4: 2}, releases=(1,), run={3: 1, 4: 1})
    shard.plan(releases=(3, 4))
    spans = shard.spans("sequence")
    assert [span.attributes and span.attributes["pagewire.sequence.id"] for span in spans] == [1, 3]
    assert [span.parent and span.parent.span_id for span in spans] == [REQUEST_SPAN_ID] * 2


def test_of_steps_that_decode_only_few_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    shard = Shard()
    shard.result(shard.plan(admits={1: SAMPLED}, run={1: 10}), True)
    for _ in range(100):
        now_s += 0.0101
        shard.result(shard.plan(run={1: 1}), True)
    numbers = [step.attributes["pagewire.step.number"] for step in shard.spans("step") if step.attributes]
    assert numbers == [1, *range(11, 102, 10)]


def test_plans_in_flight_when_a_prompt_is_done_are_no_chunks() -> None:
    shard = Shard()
    first = shard.plan(admits={1: SAMPLED}, run={1: 10})
    second = shard.plan(run={1: 1})
    shard.result(first, True)
    shard.result(second, True)
    assert len(shard.spans("prefill")) == 1


def test_an_epoch_that_breaks_ends_its_sequences_with_the_error() -> None:
    shard = Shard()
    shard.plan(admits={1: SAMPLED}, run={1: 10})
    shard.observer.on_epoch_end(StepFailed("step 1 broke"))
    (span,) = shard.spans("sequence")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "step 1 broke")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "INTERNAL"


def test_an_epoch_that_ends_otherwise_ends_its_sequences_without() -> None:
    shard = Shard()
    shard.plan(admits={1: SAMPLED}, run={1: 10})
    shard.observer.on_epoch_end(None)
    (span,) = shard.spans("sequence")
    assert (span.status.status_code, [event.name for event in span.events]) == (StatusCode.UNSET, ["epoch_end"])
    shard.observer.on_epoch_end(None)
    assert len(shard.spans("sequence")) == 1


def test_a_result_that_cannot_be_traced_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    shard = Shard()
    step = shard.plan(admits={1: SAMPLED}, run={1: 10})
    shard.observer.on_result(shard_pb2.StepResult(step=step))  # It says nothing of the sequence that ran.
    assert "A step could not be traced" in caplog.text
