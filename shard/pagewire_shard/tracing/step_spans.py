"""Spans of the requests that a shard runs, and of the steps it runs them in.

For each sequence of a sampled request a span `sequence`, a child of the router's span of the request, for as long as
the sequence is on the shard; under it `prefill`, one for each chunk. A step is shared by many requests, so its span
`step` is a trace of its own, with a link to each `sequence` in it, and chunks link to their step.

A step span is made for every step that computes prompt tokens of a sampled request, and of the steps that only decode
for one every DECODE_INTERVAL_S: they come by the hundred each second and are all alike.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from pagewire.v1 import shard_pb2
from pagewire_common.tracing import conventions as names

from pagewire_shard.errors import StreamError, status_code

DECODE_INTERVAL_S = 0.1
P = ParamSpec("P")
_log = logging.getLogger(__name__)


def _never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """A bug of ours in tracing must not end the router's epoch."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:
            _log.exception("A step could not be traced")

    return guarded


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence of a sampled request."""

    span: Span
    parent: Context
    """Context of the request's span in the router."""
    is_prefilling: bool = True


@dataclass(frozen=True, slots=True)
class _Launch:
    """A step that is to have a span."""

    start_ns: int
    sequences: dict[int, _Sequence]
    """Sequences of sampled requests, by their index in the plan's run."""
    budgets: list[int]
    """Token budgets of all sequences."""


class StepSpans:
    """A StepObserver."""

    def __init__(self, tracer: Tracer, step_tracer: Tracer) -> None:
        """tracer: for what belongs to requests; step_tracer: for steps."""
        self._tracer = tracer
        self._step_tracer = step_tracer
        self._propagator = TraceContextTextMapPropagator()
        self._sequences: dict[int, _Sequence] = {}
        self._num_prefilling = 0
        self._launches: dict[int, _Launch] = {}
        self._decode_due_s = 0.0

    @_never_raises
    def on_plan(self, plan: shard_pb2.StepPlan) -> None:
        """See StepObserver."""
        for fork in plan.forks:
            origin = self._sequences.get(fork.parent_seq_id)
            if origin is not None:
                self._start(fork.child_seq_id, origin.parent, plan.step)
        for seq_id in plan.release_seq_ids:
            sequence = self._sequences.pop(seq_id, None)
            if sequence is not None:
                self._end_prefill(sequence)
                sequence.span.set_attribute(names.LAST_STEP, plan.step - 1)
                sequence.span.end()
        for admit in plan.admits:
            parent = self._extract(admit.trace_context)
            if parent is not None:
                self._start(admit.seq_id, parent, plan.step)
        if self._sequences:
            self._note_run(plan)

    @_never_raises
    def on_result(self, result: shard_pb2.StepResult) -> None:
        """See StepObserver."""
        launch = self._launches.pop(result.step, None)
        if launch is None:
            return
        end_ns = time.time_ns()
        step = self._step_tracer.start_span(
            "step",
            Context(),
            attributes=_step_attributes(result, launch),
            links=[Link(sequence.span.get_span_context()) for sequence in launch.sequences.values()],
            start_time=launch.start_ns,
        )
        step.end(end_ns)
        cached = dict(zip(result.first_run_indices, result.num_cached_tokens, strict=True))
        for i, sequence in launch.sequences.items():
            if sequence.is_prefilling:
                self._add_chunk(sequence, i, launch, result, cached.get(i), Link(step.get_span_context()), end_ns)
                if result.num_sampled_tokens[i]:
                    self._end_prefill(sequence)

    @_never_raises
    def on_epoch_end(self, error: StreamError | None) -> None:
        """See StepObserver."""
        for sequence in self._sequences.values():
            if error is None:
                sequence.span.add_event("epoch_end")
            else:
                sequence.span.set_attribute(names.ERROR_TYPE, status_code(error).name)
                sequence.span.set_status(Status(StatusCode.ERROR, error.message))
            sequence.span.end()
        self._sequences.clear()
        self._launches.clear()
        self._num_prefilling = 0

    def _extract(self, trace_context: shard_pb2.TraceContext) -> Context | None:
        """The request's context; None: it has none that can be read. A shard begins no traces of requests."""
        if not trace_context.traceparent:
            return None
        headers = {"traceparent": trace_context.traceparent, "tracestate": trace_context.tracestate}
        context = self._propagator.extract(headers, Context())
        return context if get_current_span(context).get_span_context().is_valid else None

    def _start(self, seq_id: int, parent: Context, step: int) -> None:
        attributes = {names.SEQ_ID: seq_id, names.FIRST_STEP: step}
        span = self._tracer.start_span("sequence", parent, SpanKind.SERVER, attributes)
        if span.is_recording():
            self._sequences[seq_id] = _Sequence(span, parent)
            self._num_prefilling += 1

    def _end_prefill(self, sequence: _Sequence) -> None:
        self._num_prefilling -= sequence.is_prefilling
        sequence.is_prefilling = False

    def _note_run(self, plan: shard_pb2.StepPlan) -> None:
        now_s = time.monotonic()
        if not self._num_prefilling and now_s < self._decode_due_s:
            return
        found = {i: self._sequences[s] for i, s in enumerate(plan.run_seq_ids) if s in self._sequences}
        if found and (now_s >= self._decode_due_s or any(sequence.is_prefilling for sequence in found.values())):
            self._launches[plan.step] = _Launch(time.time_ns(), found, list(plan.run_token_budgets))
            self._decode_due_s = now_s + DECODE_INTERVAL_S

    def _add_chunk(
        self,
        sequence: _Sequence,
        index: int,
        launch: _Launch,
        result: shard_pb2.StepResult,
        num_cached: int | None,
        step: Link,
        end_ns: int,
    ) -> None:
        attributes: dict[str, AttributeValue] = {
            names.STEP: result.step,
            names.NUM_TOKENS: launch.budgets[index],
            names.NUM_COMPUTED_TOKENS: result.num_computed_tokens[index],
        }
        if num_cached is not None:
            attributes[names.NUM_CACHED_TOKENS] = num_cached
        parent = set_span_in_context(sequence.span, Context())
        self._tracer.start_span("prefill", parent, attributes=attributes, links=[step], start_time=launch.start_ns).end(
            end_ns
        )


def _step_attributes(result: shard_pb2.StepResult, launch: _Launch) -> dict[str, AttributeValue]:
    timings = result.timings
    return {
        names.STEP: result.step,
        names.NUM_SEQUENCES: len(launch.budgets),
        names.NUM_STEP_TOKENS: sum(launch.budgets),
        names.QUEUE_S: timings.queue_us / 1e6,
        names.PREPARE_S: timings.prepare_us / 1e6,
        names.FORWARD_S: timings.forward_us / 1e6,
        names.SAMPLE_S: timings.sample_us / 1e6,
    }
