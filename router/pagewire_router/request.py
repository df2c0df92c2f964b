"""A request inside the router, and the sink that its output goes to.

Admission builds a Request, and Inference submits it; from then on the scheduler owns its sequences, and the group loop
calls the sink with their tokens. All of it happens on the event loop's thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import PrefixHashes, sequence_kind

from pagewire_router.beams.search import BeamSettings, Hypothesis
from pagewire_router.errors import RouterError
from pagewire_router.timeline import Timeline, TraceContext


class OutputSink(Protocol):
    """Takes the output of one request. See output/output_buffer.py."""

    def on_prompt_scores(self, scores: shard_pb2.PromptScores) -> None:
        """Takes the log-probabilities of the prompt's next tokens, all of which come before the first sampled token."""

    def on_tokens(self, index: int, token_ids: list[int], logprobs: list[shard_pb2.SequenceLogprobs] | None) -> bool:
        """Takes the next tokens of sequence `index`. Returns whether a stop string ends the sequence here."""

    def on_finished(
        self, index: int, reason: "inference_pb2.FinishReason.ValueType", stop_token_id: int | None, num_cached: int
    ) -> None:
        """Sequence `index` has ended. Where on_tokens() has found a stop string, the reason is STOP.

        Args:
            stop_token_id: stop token that ended the sequence; None for end-of-sequence tokens and other reasons.
            num_cached: tokens of the prompt that the prefix cache provided.
        """

    def on_beams(self, hypotheses: list[Hypothesis], num_cached: int) -> None:
        """A beam search is over: all sequences have ended, as many as there are hypotheses, best first."""

    def on_failed(self, error: RouterError) -> None:
        """The request has failed; nothing is called after this."""


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
    """time.monotonic() of the call's arrival. (uvloop's time stands still within a turn, and counts milliseconds.)"""
    deadline_s: float | None = None
    """time.monotonic() after which the client takes no answer; None: no deadline."""
    priority: int = 0
    """Lower runs first."""
    client: str = ""
    """Who shares the device with other clients while requests wait."""
    weight: float = 1.0
    """The client's share, relative to that of others."""
    cache_salt: str = ""
    beams: BeamSettings | None = None
    """How to search; None: the request is no beam search. Where params say the same, the values agree."""
    grammar: str = ""
    """Name of params.structured_outputs in plans, the same for the same content; empty: there are none."""
    trace_context: TraceContext | None = None
    """Trace context that the shards get."""
    timeline: Timeline | None = None
    """Collects the events of a traced request; None: the request is not traced."""
    prompt_text: str | None = None
    """The rendered conversation, if the client has asked for it; else None."""
    eos_token_ids: tuple[int, ...] = field(default=())
    """The model's own end-of-sequence tokens; empty if the request ignores them."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are not generated."""
    indices: Sequence[int] | None = None
    """Those of its n sequences that it has; None: all of them. See groups/request_parts.py."""
    resumes: bool = False
    """Its client resumes the request at another router if this one ends its stream."""
    received: Mapping[int, list[int]] | None = None
    """A resumed request: by index of the sequence, the tokens that its client has; None: it is not resumed."""
    shard_loss_token: str = ""
    """A resumed request: what its client says of shards that were lost; see groups/shard_losses.py."""
    num_shard_losses: int = 0
    """A resumed request: shards that were lost in a row while they ran it, without a token in between, as routers have
    said."""
    num_received_scores: int = 0
    """A resumed request: positions of the prompt whose log-probabilities its client has."""
    other_parts: list["Request"] = field(default_factory=list)
    """Requests that have its other sequences."""
    scheduled_s: float | None = None
    """time.monotonic() of the first step plan that has the request; None: none has yet."""
    _prefix: PrefixHashes | None = None

    @property
    def sequence_indices(self) -> Sequence[int]:
        """Indices of its sequences."""
        return range(self.params.n) if self.indices is None else self.indices

    def known_token_ids(self, index: int) -> list[int]:
        """The tokens that sequence `index` begins with: the prompt, and those that its client has."""
        received = None if self.received is None else self.received.get(index)
        return self.prompt_token_ids + received if received else self.prompt_token_ids

    @property
    def num_received_tokens(self) -> int:
        """Output tokens that its client has of its sequences."""
        received = self.received
        return sum(len(received.get(index, ())) for index in self.sequence_indices) if received else 0

    @property
    def num_known_tokens(self) -> int:
        """Tokens that it comes with: the prompt, and those that its client has of its sequences."""
        return len(self.prompt_token_ids) + self.num_received_tokens

    @property
    def num_sequences(self) -> int:
        """Sequences that run at a time, at most."""
        return len(self.sequence_indices) if self.beams is None else self.beams.width

    def prefix(self, block_size: int, longest_short: int = 0) -> PrefixHashes:
        """Returns the hashes of the prompt's blocks, the same object each time, so that none is computed twice."""
        kind, prefix = self.kind(longest_short), self._prefix
        if prefix is None or prefix.block_size != block_size or prefix.kind != kind:
            prefix = PrefixHashes(self.prompt_token_ids, block_size, self.cache_salt, kind=kind)
            self._prefix = prefix
        return prefix

    def kind(self, longest_short: int) -> str:
        """What tells its sequences' blocks from others'; see sequence_kind()."""
        return sequence_kind(len(self.prompt_token_ids) + self.params.max_tokens, longest_short)
