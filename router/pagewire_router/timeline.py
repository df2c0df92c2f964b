"""What happened to one traced request, noted when it happens. Spans are made of it when the request is over.

Noting is an append: nothing of OpenTelemetry runs while tokens flow, and a request that is not traced has no timeline.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagewire.v1 import inference_pb2

if TYPE_CHECKING:
    from pagewire_router.output.request_output import RequestOutput
    from pagewire_router.request import Request


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context, as headers."""

    traceparent: str
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits for this shard group from now on: it has arrived, or was moved here."""

    group_id: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """A step plan takes it in, for the first time or again."""

    step: int
    num_tokens: int
    """Known tokens that the shard group is given."""


@dataclass(frozen=True, slots=True)
class ChunkPlanned:
    """A step plan computes a chunk of one of its sequences."""

    step: int
    index: int
    """Of the sequence within the request."""
    budget: int
    """Tokens to compute, at most: a cached prefix is not computed."""


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """The result of such a step is back."""

    step: int
    index: int
    num_computed: int
    """Tokens whose keys and values are in the cache, those of a cached prefix included."""
    num_cached: int | None
    """Tokens that a cached prefix provided; None: it had run before."""
    has_sampled: bool
    """The sequence has caught up with its known tokens, so that decoding begins."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """It gave way to a more urgent request and waits again."""

    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class FailedOver:
    """Its shard group was lost, or gives up its sequences before it stops: it waits again."""

    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """All its sequences have ended."""

    num_output_tokens: int


Happening = Queued | Admitted | ChunkPlanned | ChunkDone | Preempted | FailedOver | Ended


class Timeline:
    """One traced request."""

    __slots__ = ("happenings", "message", "model", "output", "request", "tokenized_ns", "trace_context")

    def __init__(self, trace_context: TraceContext) -> None:
        self.trace_context = trace_context
        """Of the span of the request's call: what the shards' spans belong to."""
        self.happenings: list[tuple[int, Happening]] = []
        """With the time of each, in nanoseconds since the epoch, in order."""
        self.tokenized_ns: tuple[int, int] | None = None
        """When encoding the prompt began and ended; None: it came as token ids."""
        self.message: inference_pb2.GenerateRequest | None = None
        """What was asked for."""
        self.model = ""
        """The model that is served."""
        self.request: Request | None = None
        """What it was found to be; None: it was refused."""
        self.output: RequestOutput | None = None
        """What came of it, with the request."""

    def note(self, happening: Happening) -> None:
        """It happens now."""
        self.happenings.append((time.time_ns(), happening))


current_timeline: ContextVar[Timeline | None] = ContextVar("current_timeline", default=None)
"""Of the call that this task serves; None: it is not traced."""
