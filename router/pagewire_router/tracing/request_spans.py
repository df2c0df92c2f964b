"""Makes the spans and events of a request from its timeline, once the request is over.

Under the span of the call: tokenize; queue, from arrival to the first step plan, and again after each preemption or
failover; prefill, one for each chunk, from the plan to its result; decode, from the result with the first token to the
last. First token, preemption, failover and resume are events of the call's span.
"""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer
from opentelemetry.util.types import AttributeValue
from pagewire_common.tracing import conventions as names

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
)


def add_request_spans(tracer: Tracer, call: Span, timeline: Timeline, end_ns: int) -> int | None:
    """Adds a request's spans under its call's span, which ends at end_ns. Returns when its first token came."""
    spans = _RequestSpans(tracer, call)
    if timeline.tokenized_ns is not None:
        num_tokens = {} if timeline.num_prompt_tokens is None else {names.NUM_TOKENS: timeline.num_prompt_tokens}
        spans.add("tokenize", *timeline.tokenized_ns, num_tokens)
    for at_ns, event in timeline.events:
        spans.take(at_ns, event)
    spans.close(end_ns)
    if spans.num_cached is not None:
        call.set_attribute(names.USAGE_CACHE_READ_INPUT_TOKENS, spans.num_cached)
    return spans.first_token_ns


class _RequestSpans:
    """Walks through a timeline and keeps the spans that are open."""

    def __init__(self, tracer: Tracer, call: Span) -> None:
        self.first_token_ns: int | None = None
        self.num_cached: int | None = None
        """Tokens of the prompt that a cached prefix provided when the request first ran."""
        self._tracer = tracer
        self._call = call
        self._parent: Context = trace.set_span_in_context(call, Context())
        self._queued_ns: int | None = None
        self._queue_reason = "arrival"
        self._decoding_ns: int | None = None
        self._chunks: dict[tuple[int, int], tuple[int, int]] = {}
        """By (step, sequence index), for results that are not back: time of the plan in ns, and budget of the chunk."""
        self._group_id = ""
        self._num_output_tokens = 0

    def add(self, name: str, start_ns: int, end_ns: int, attributes: Mapping[str, AttributeValue]) -> None:
        """Adds a finished span."""
        span = self._tracer.start_span(name, self._parent, attributes=attributes, start_time=start_ns)
        span.end(end_ns)

    def take(self, at_ns: int, event: TimelineEvent) -> None:
        """Takes the next event of the timeline."""
        match event:
            case Queued():
                self._group_id = event.group_id
                if self._queued_ns is None:
                    self._queued_ns = at_ns
            case Admitted():
                self._on_admit(at_ns, event)
            case ChunkPlanned():
                self._chunks[event.step, event.index] = (at_ns, event.budget)
            case ChunkDone():
                self._on_chunk_done(at_ns, event)
            case Preempted():
                self._on_eviction(at_ns, "preemption", event.num_output_tokens)
            case FailedOver() if self._queued_ns is None:
                self._on_eviction(at_ns, "failover", event.num_output_tokens)
                self._end_chunks(at_ns)
            case Ended():
                self._end_decode(at_ns, event.num_output_tokens)
                self._end_queue(at_ns)

    def close(self, end_ns: int) -> None:
        """Ends the spans that are still open."""
        self._end_queue(end_ns)
        self._end_chunks(end_ns)
        self._end_decode(end_ns, self._num_output_tokens)

    def _on_admit(self, at_ns: int, admitted: Admitted) -> None:
        if self._queue_reason != "arrival":
            attributes: dict[str, AttributeValue] = {
                names.GROUP_ID: self._group_id,
                names.NUM_TOKENS: admitted.num_tokens,
            }
            self._call.add_event("resume", attributes, timestamp=at_ns)
        self._end_queue(at_ns)

    def _on_chunk_done(self, at_ns: int, done: ChunkDone) -> None:
        chunk = self._chunks.pop((done.step, done.index), None)
        if chunk is not None:
            self._add_chunk(done.step, done.index, *chunk, at_ns, done)
            self.num_cached = done.num_cached if self.num_cached is None else self.num_cached
        if done.has_sampled:
            if self.first_token_ns is None:
                self.first_token_ns = at_ns
                self._call.add_event("first_token", timestamp=at_ns)
            # A request that was preempted while the step ran has its token, and still waits.
            if self._queued_ns is None and self._decoding_ns is None:
                self._decoding_ns = at_ns

    def _on_eviction(self, at_ns: int, reason: str, num_output_tokens: int) -> None:
        self._call.add_event(reason, {names.GROUP_ID: self._group_id}, timestamp=at_ns)
        self._end_decode(at_ns, num_output_tokens)
        self._queued_ns, self._queue_reason = at_ns, reason

    def _end_queue(self, at_ns: int) -> None:
        if self._queued_ns is not None:
            attributes = {names.GROUP_ID: self._group_id, names.QUEUE_REASON: self._queue_reason}
            self.add("queue", self._queued_ns, at_ns, attributes)
            self._queued_ns = None

    def _end_chunks(self, at_ns: int) -> None:
        """Ends the spans of chunks whose result never comes."""
        for (step, index), chunk in self._chunks.items():
            self._add_chunk(step, index, *chunk, at_ns, None)
        self._chunks.clear()

    def _add_chunk(
        self, step: int, index: int, start_ns: int, budget: int, end_ns: int, done: ChunkDone | None
    ) -> None:
        attributes: dict[str, AttributeValue] = {
            names.GROUP_ID: self._group_id,
            names.STEP: step,
            names.SEQUENCE_INDEX: index,
            names.NUM_TOKENS: budget,
        }
        if done is not None:
            attributes[names.NUM_COMPUTED_TOKENS] = done.num_computed
            if done.num_cached is not None:
                attributes[names.NUM_CACHED_TOKENS] = done.num_cached
        self.add("prefill", start_ns, end_ns, attributes)

    def _end_decode(self, at_ns: int, num_output_tokens: int) -> None:
        if self._decoding_ns is not None:
            num_tokens = num_output_tokens - self._num_output_tokens
            self.add("decode", self._decoding_ns, at_ns, {names.GROUP_ID: self._group_id, names.NUM_TOKENS: num_tokens})
            self._decoding_ns = None
        self._num_output_tokens = num_output_tokens
