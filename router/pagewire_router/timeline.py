"""The events of one traced request, recorded as they happen. Its spans are made of them when the request is over.

Recording an event is an append: nothing of OpenTelemetry runs while tokens flow. A request that is not traced has no
timeline.
"""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context, as headers."""

    traceparent: str
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits for this shard group from now on: it has arrived, or was moved here."""

    group_id: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """A step plan admits the request, for the first time or again."""

    step: int
    num_tokens: int
    """Known tokens that the shard group is given."""


@dataclass(frozen=True, slots=True)
class ChunkPlanned:
    """A step plan computes a chunk of one of the request's sequences."""

    step: int
    index: int
    """Index of the sequence within the request."""
    budget: int
    """Most tokens to compute; a cached prefix is not computed."""


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """The result of a step with a planned chunk is back."""

    step: int
    index: int
    num_computed: int
    """Tokens whose keys and values are in the cache, those of a cached prefix included."""
    num_cached: int | None
    """Tokens that a cached prefix provided; None: the sequence had run before."""
    has_sampled: bool
    """The sequence has caught up with its known tokens, so that decoding begins."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """The request gave way to a more urgent one and waits again."""

    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class FailedOver:
    """The request's shard group was lost, or gives up its sequences before it stops. The request waits again."""

    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """All sequences of the request have ended."""

    num_output_tokens: int


TimelineEvent = Queued | Admitted | ChunkPlanned | ChunkDone | Preempted | FailedOver | Ended


class Timeline:
    """The events of one traced request."""

    __slots__ = ("events", "num_prompt_tokens", "tokenized_ns", "trace_context")

    def __init__(self, trace_context: TraceContext) -> None:
        self.trace_context = trace_context
        """The span of the request's call, which the shards' spans belong to."""
        self.events: list[tuple[int, TimelineEvent]] = []
        """Events in order, each with its time in nanoseconds since the epoch."""
        self.tokenized_ns: tuple[int, int] | None = None
        """When encoding the prompt began and ended; None: the prompt came as token ids."""
        self.num_prompt_tokens: int | None = None
        """Length of the prompt; None: the request was refused."""

    def note(self, event: TimelineEvent) -> None:
        """Records an event with the current time."""
        self.events.append((time.time_ns(), event))
