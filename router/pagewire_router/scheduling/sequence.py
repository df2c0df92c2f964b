"""A request's sequences as the scheduler knows them: tokens, state, and counts that run ahead of the results.

Plans are sent before the results of earlier ones are back, so `num_tokens` and `num_computed_tokens` are what a
sequence has once all plans in flight are done: upper bounds, which the shards' engine counts in the same way. They are
exact unless the sequence stops earlier, drafts are rejected, or it is ADMITTED, when the length of its cached prefix is
guessed: its bounds then hold for every length, and `num_expected_tokens` is what it has computed if the guess is right.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagewire.v1 import inference_pb2
from pagewire_common.block_hash import PrefixHashes
from pagewire_common.cache_groups import chunk_len

from pagewire_router.request import Request
from pagewire_router.scheduling.beam_sequences import BeamSequences
from pagewire_router.scheduling.sequence_state import (
    ENDED,
    ON_SHARD,
    PREEMPTABLE,
    SequenceEvent,
    SequenceState,
    next_state,
)

if TYPE_CHECKING:
    from pagewire_router.scheduling.suspects import Deaths, Suspicion

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def sequence_seed(request_seed: int, index: int) -> int:
    """The seed of sequence `index`, an int64: the request's own for the first, SplitMix64 of both for the others."""
    if index == 0:
        return request_seed
    z = (request_seed + index * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    z ^= z >> 31
    return z - (1 << 64) if z >= 1 << 63 else z


class ProtocolError(Exception):
    """A shard's result contradicts what it said before."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One of a request's n sequences."""

    group: "SequenceGroup"
    index: int
    token_ids: list[int]
    """Prompt, then the sampled tokens that have come back. The request's own list of the prompt until enter_shard(),
    unless it is resumed."""
    max_len: int
    """It samples no token beyond this length: prompt plus max_tokens, or the model's longest."""
    state: SequenceState = SequenceState.WAITING
    seq_id: int = 0
    """Its name on the shard group while it is there."""
    finish_reason: "inference_pb2.FinishReason.ValueType" = inference_pb2.FINISH_REASON_UNSPECIFIED
    """Set when it has ended."""
    num_inflight_runs: int = 0
    """Plans in flight that run it."""
    num_tokens: int = 0
    """Most tokens it has once all plans in flight are done. Beyond max_len only if some of them are unverified."""
    num_computed_tokens: int = 0
    """Most tokens it has computed once all plans in flight are done."""
    num_unverified_tokens: int = 0
    """Draft tokens that count as accepted in num_tokens and num_computed_tokens, and may be rejected."""
    num_admitted_tokens: int = 0
    """Tokens it had when it was admitted or forked: blocks for all of them are reserved from then on."""
    num_reported_computed_tokens: int = 0
    """Tokens it had computed as of the last result."""
    prefix: PrefixHashes | None = None
    """Hashes of the blocks that it had when it was last admitted; None: it was forked."""
    checkpoints: tuple[int, ...] = ()
    """The shards keep the state behind so many of its tokens, to be found by others."""
    chunk_ends: tuple[int, ...] = ()
    """Where a run ends at the latest: what the state is needed behind, ascending."""
    num_guessed_tokens: int = 0
    """Tokens that a cached prefix is expected to provide; used while ADMITTED."""
    num_expected_tokens: int = 0
    """Tokens it is expected to have computed once all plans in flight are done; used while ADMITTED."""
    inflight_budgets: list[int] = field(default_factory=list)
    """Tokens that each plan in flight may compute of it; used while ADMITTED."""
    num_held_blocks: int = 0
    """Blocks it held as of the last result. Like the next four, set by the ledger."""
    num_held_tokens: int = 0
    """Computed tokens that fit the held blocks."""
    num_held_window_blocks: int = 0
    """Those of num_held_blocks that are in tables with a window."""
    num_reserved_blocks: int = 0
    """Most blocks it holds once all plans in flight are done, those for num_admitted_tokens included."""
    num_reserved_tokens: int = 0
    """Computed tokens that fit the reserved blocks."""
    next_write_block_shared: bool = False
    """Its next token may go to a block that is shared, and is copied first, which takes one block more."""
    last_fork_step: int = 0
    """The last plan that forked it or made it; results of earlier plans do not know what it shares. 0: none."""
    num_forked_tokens: int = 0
    """Tokens that it shared with its parent when it was forked; 0: it was not."""
    fork_from: int = 0
    """Cache groups with a window or with states keep what children need that are forked from so many of its tokens; 0:
    there are none."""

    @property
    def is_finished(self) -> bool:
        """It has ended."""
        return self.state in ENDED

    @property
    def num_output_tokens(self) -> int:
        """Sampled tokens that have come back."""
        return len(self.token_ids) - self.group.num_prompt_tokens

    def runs_as(self, seq_id: int) -> bool:
        """It is on the shard group and has not left it since it got this seq_id."""
        return self.state is SequenceState.RUNNING and self.seq_id == seq_id

    def on(self, event: SequenceEvent) -> None:
        """Moves to the state that follows. See sequence_state.py."""
        self.state = next_state(self.state, event)

    def child(self, index: int, token_id: int) -> "Sequence":
        """A beam with one token more, which is to be forked from this one."""
        return Sequence(self.group, index, [*self.token_ids, token_id], self.max_len, SequenceState.FORKING)

    def hash_prefix(self, block_size: int, longest_short: int = 0) -> PrefixHashes:
        """Sets and returns the hashes of the blocks that it has now."""
        request = self.group.request
        self.prefix = request.prefix(block_size, longest_short)
        if len(self.token_ids) > self.prefix.num_tokens:
            self.prefix = PrefixHashes(self.token_ids, block_size, request.cache_salt, kind=self.prefix.kind)
        return self.prefix

    @property
    def num_likely_computed_tokens(self) -> int:
        """Tokens it has computed once all plans in flight are done, if the guess is right."""
        return self.num_expected_tokens if self.state is SequenceState.ADMITTED else self.num_computed_tokens

    def enter_shard(
        self, seq_id: int, *, num_computed_tokens: int, num_tokens: int, num_guessed_tokens: int = 0
    ) -> None:
        """The shard group gets to know it, by admission or as a fork."""
        if self.token_ids is self.group.request.prompt_token_ids:
            self.token_ids = self.token_ids.copy()
        self.seq_id = seq_id
        self.num_admitted_tokens = len(self.token_ids)
        self.num_unverified_tokens = 0
        self.num_computed_tokens, self.num_tokens = num_computed_tokens, num_tokens
        self.num_reported_computed_tokens = 0
        self.num_guessed_tokens = self.num_expected_tokens = num_guessed_tokens
        self.inflight_budgets.clear()
        self.next_write_block_shared = False
        self.last_fork_step = self.num_forked_tokens = self.fork_from = 0
        self.checkpoints = self.chunk_ends = ()

    def end_chunks(self, checkpoints: tuple[int, ...]) -> None:
        """It enters a shard group with states, which keeps those at the checkpoints and at fork_from."""
        self.checkpoints = checkpoints
        self.chunk_ends = tuple(sorted({*checkpoints, self.fork_from} - {0}))

    def num_computed_after(self, budget: int) -> int:
        """Most tokens it has computed once a further plan has run it with this budget."""
        num_computed = self.num_computed_tokens
        if self.chunk_ends:
            budget = chunk_len(num_computed, budget, self.chunk_ends)
        return min(num_computed + budget, self.num_tokens)

    def run(self, budget: int) -> None:
        """A plan runs it: moves its counts ahead."""
        self.num_inflight_runs += 1
        self._advance(budget)
        if self.state is SequenceState.ADMITTED:
            self.inflight_budgets.append(budget)
            self.num_expected_tokens = min(self.num_expected_tokens + budget, self.num_admitted_tokens)

    def draft(self, num_drafts: int) -> None:
        """A plan runs it to verify so many draft tokens behind its last token: moves its counts ahead."""
        self.num_inflight_runs += 1
        self.num_computed_tokens += 1 + num_drafts
        self.num_tokens += 1 + num_drafts
        self.num_unverified_tokens += num_drafts

    def verify(self, num_drafts: int, num_accepted: int) -> None:
        """The counts of a plan that verified draft tokens are taken over: those that were rejected count no more."""
        self.num_computed_tokens -= num_drafts - num_accepted
        self.num_tokens -= num_drafts - num_accepted
        self.num_unverified_tokens -= num_drafts

    def num_missed_tokens(self, num_computed_tokens: int) -> int:
        """The first result since its admission is back: tokens by which its cached prefix is shorter than guessed."""
        expected = min(self.num_guessed_tokens + self.inflight_budgets[0], self.num_admitted_tokens)
        return max(0, expected - num_computed_tokens)

    def settle(self, num_computed_tokens: int, num_tokens: int) -> None:
        """The first result since its admission is back: its counts become exact."""
        self.on(SequenceEvent.SETTLE)
        self.num_computed_tokens, self.num_tokens = num_computed_tokens, num_tokens
        for budget in self.inflight_budgets[1:]:
            self._advance(budget)
        self.inflight_budgets.clear()

    def append(self, token_ids: list[int], position: int) -> None:
        """Appends sampled tokens, the first of which has this position. Raises ProtocolError."""
        num_tokens = len(self.token_ids)
        if position != num_tokens:
            raise ProtocolError(f"tokens {token_ids} at position {position} of a sequence with {num_tokens} tokens")
        self.token_ids += token_ids

    def _advance(self, budget: int) -> None:
        self.num_computed_tokens = self.num_computed_after(budget)
        if self.num_computed_tokens == self.num_tokens < self.max_len and self.group.beams is None:
            self.num_tokens += 1


MANY_LOGPROBS = 1024
"""More of each token than this are counted: fewer come to little whatever runs in a step."""


class SequenceGroup:
    """A request's sequences: admitted, preempted and resumed together."""

    __slots__ = (
        "__weakref__",
        "beams",
        "cleared_at",
        "deaths",
        "expected_tokens",
        "is_condemned",
        "is_misguessed",
        "next_scored_position",
        "num_cached_tokens",
        "num_charged_tokens",
        "num_passes",
        "num_resumed_tokens",
        "queue_key",
        "request",
        "sequences",
        "suspicion",
        "urgency",
    )

    def __init__(self, request: Request, max_model_len: int) -> None:
        self.request = request
        num_prompt_tokens = len(request.prompt_token_ids)
        max_len = min(num_prompt_tokens + request.params.max_tokens, max_model_len)
        indices = request.sequence_indices if request.beams is None else range(1)
        self.sequences = [Sequence(self, index, request.known_token_ids(index), max_len) for index in indices]
        """Of a beam search the beams, which every step replaces."""
        self.beams = None if request.beams is None else BeamSequences(request.beams, num_prompt_tokens)
        self.urgency = (request.priority, request.arrival_s)
        """Lower is more urgent: what preemption compares."""
        self.expected_tokens = 0.0
        """Tokens that all of its sequences together are likely to yield."""
        self.queue_key = -math.inf
        """Its place in the waiting queue among those of its client; -inf: it has not waited yet."""
        self.num_charged_tokens: float | None = None
        """Tokens that its client was charged for it when it was first admitted; None: it was not."""
        self.num_passes = 0
        """Requests behind it that were admitted before it because it did not fit."""
        self.num_resumed_tokens: int | None = None
        """Output tokens it had when it was admitted again after a preemption; None: it was not."""
        self.next_scored_position = 0
        """Position of the first prompt token whose log-probability is wanted and not known; 0: there is none."""
        if request.params.HasField("prompt_logprobs") and num_prompt_tokens > 1 + request.num_received_scores:
            self.next_scored_position = 1 + request.num_received_scores
        self.num_cached_tokens: int | None = None
        """Prompt tokens a cached prefix provided when it was first admitted here."""
        self.is_misguessed = False
        """It was admitted on a wrong guess, and sent back to the queue for that once."""
        self.suspicion: Suspicion | None = None
        """Set: a step failed that had it, so that it runs alone; see suspects.py."""
        self.cleared_at = -1
        """Output tokens it had when it was last cleared of a suspicion."""
        self.deaths: Deaths | None = None
        """Shard processes that died while it ran."""
        self.is_condemned = False
        """Shard processes have died over it alone, too often: it is not run any more."""

    @property
    def num_prompt_tokens(self) -> int:
        """The prompt's length."""
        return len(self.request.prompt_token_ids)

    @property
    def num_many_logprobs(self) -> int:
        """Most probable tokens that its sequences report in a step; 0: so few that they are not counted."""
        num = self.request.params.logprobs
        return num * len(self.sequences) if num > MANY_LOGPROBS else 0

    @property
    def num_scores_per_token(self) -> int:
        """Log-probabilities that each prompt token to be computed yields; 0: none are wanted, or all are known."""
        return 1 + self.request.params.prompt_logprobs if self.next_scored_position else 0

    def num_usable_tokens(self, num_cached_blocks: int, block_size: int) -> int:
        """How many of its leading tokens a prefix of so many blocks provides: none whose logits it needs."""
        if self.next_scored_position:
            num_cached_blocks = min(num_cached_blocks, (self.next_scored_position - 1) // block_size)
        return num_cached_blocks * block_size

    @property
    def num_slots(self) -> int:
        """Slots of a shard group that it takes when it is admitted."""
        return len(self.unfinished()) if self.beams is None else self.request.num_sequences

    @property
    def num_output_tokens(self) -> int:
        """Sampled tokens that have come back, over its sequences; of a beam search the steps it has taken."""
        if self.beams is not None:
            return self.beams.search.num_tokens
        return sum(sequence.num_output_tokens for sequence in self.sequences)

    @property
    def is_running(self) -> bool:
        """It was admitted, and has neither ended nor been preempted since."""
        return any(sequence.state in PREEMPTABLE for sequence in self.sequences)

    @property
    def was_preempted(self) -> bool:
        """It waits to be admitted again."""
        return any(sequence.state is SequenceState.PREEMPTED for sequence in self.sequences)

    @property
    def is_finished(self) -> bool:
        """All its sequences have ended."""
        return all(sequence.is_finished for sequence in self.sequences)

    @property
    def has_progressed(self) -> bool:
        """It has yielded a token since it was last admitted: until then it is not preempted again."""
        return self.num_resumed_tokens is None or self.num_output_tokens > self.num_resumed_tokens

    @property
    def is_drained(self) -> bool:
        """No plan in flight runs any of its sequences, so that it may be admitted again."""
        return all(sequence.num_inflight_runs == 0 for sequence in self.sequences)

    def leader(self) -> Sequence:
        """Returns the sequence that is admitted for all: the longest one that has not ended."""
        if len(self.sequences) == 1:
            return self.sequences[0]
        return max(self.unfinished(), key=lambda sequence: len(sequence.token_ids))

    def preempt(self) -> None:
        """Its sequences leave the shard group, or have been lost with it. Those that have not ended wait again."""
        for sequence in self.sequences:
            if sequence.state in PREEMPTABLE:
                sequence.on(SequenceEvent.PREEMPT)
        if self.beams is not None:
            self.sequences = self.beams.preempt(self.sequences)

    def forget_plans(self) -> None:
        """The plans in flight are lost, and with them the blocks that they would have taken."""
        for sequence in self.sequences:
            sequence.num_inflight_runs = 0
            sequence.num_held_blocks = sequence.num_reserved_blocks = sequence.num_held_window_blocks = 0

    def unfinished(self) -> list[Sequence]:
        """Its sequences that have not ended."""
        return [sequence for sequence in self.sequences if not sequence.is_finished]

    def to_fork(self) -> list[Sequence]:
        """Its sequences that wait for the first to compute what they share."""
        return [sequence for sequence in self.sequences if sequence.state is SequenceState.FORKING]

    def parent(self) -> Sequence:
        """Returns the sequence on the shard group that the others are forked from."""
        return next(sequence for sequence in self.sequences if sequence.state in ON_SHARD)

    def num_shared_tokens(self) -> int:
        """Leading tokens that its sequences share and that each of them extends by one token at least."""
        if self.beams is not None:
            return self.beams.num_shared_tokens
        num_prompt = self.num_prompt_tokens
        return num_prompt - any(len(sequence.token_ids) == num_prompt for sequence in self.unfinished())
