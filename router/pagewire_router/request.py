"""What a request is inside the router: its sequences, and the sink its tokens go to.

The service builds a Request and submits it; the scheduler owns its sequences from then on; the group loop calls the
sink for every token. All of it happens on the event loop's thread.
"""

from dataclasses import dataclass, field
from typing import Protocol

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.errors import RouterError
from pagewire_router.timeline import Timeline, TraceContext


class OutputSink(Protocol):
    """Where a request's output goes: detokenized, checked for stop strings and written to the client by the service."""

    def on_tokens(self, index: int, token_ids: list[int], logprobs: list[shard_pb2.SequenceLogprobs] | None) -> bool:
        """Takes the next tokens of sequence `index`. True: a stop string was found, the sequence ends here."""

    def on_finished(
        self, index: int, reason: "inference_pb2.FinishReason.ValueType", stop_token_id: int | None, num_cached: int
    ) -> None:
        """Sequence `index` ended. After a True from on_tokens it is called with STOP; the sink knows the string.

        stop_token_id: the stop token that ended it, None for end-of-sequence tokens and other reasons.
        """

    def on_failed(self, error: RouterError) -> None:
        """The request cannot go on; nothing more comes."""


@dataclass(slots=True, eq=False)
class Request:
    """One request, from admission to its last token."""

    request_id: str
    prompt_token_ids: list[int]
    params: inference_pb2.SamplingParams
    """Resolved: the seed and every field with a default are set, max_tokens is bounded by the context. Reading a field
    costs more than reading an attribute, so what every step or token needs is read once."""
    sink: OutputSink
    arrival_s: float
    """time.monotonic(): uvloop's own time stands still within a turn and counts whole milliseconds."""
    deadline_s: float | None = None
    """time.monotonic() after which the answer is worthless; None: never."""
    priority: int = 0
    """Lower runs first."""
    cache_salt: str = ""
    trace_context: TraceContext | None = None
    """Passed on to the shards."""
    timeline: Timeline | None = None
    """Of a request that is traced."""
    prompt_text: str | None = None
    """The rendered conversation, if its client wants it back."""
    eos_token_ids: tuple[int, ...] = field(default=())
    """The model's own end-of-sequence tokens; empty if the request ignores them."""
    scheduled_s: float | None = None
    """time.monotonic() of the first step plan that has it."""
