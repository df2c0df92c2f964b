"""A sequence as the scheduler knows it: its tokens, and bounds on what its shard group has made of it.

Plans are sent before the results of earlier ones are back, so the scheduler reasons about what a sequence will be once
everything in flight is done. Those figures are upper bounds: a sequence may stop earlier. They are exact otherwise,
except between an admission and its first result, when the length of the cached prefix is unknown.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagewire.v1 import inference_pb2

from pagewire_router.request import Request

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
    """Prompt, then what was sampled and has come back. The request's own list of the prompt until start()."""
    limit: int
    """Its longest length: prompt plus max_tokens."""
    seq_id: int = -1
    """Its name on the shard; -1: it is not there."""
    finish_reason: "inference_pb2.FinishReason.ValueType" = inference_pb2.FINISH_REASON_UNSPECIFIED
    """Set: it has ended, and tokens still on their way are dropped."""
    num_inflight: int = 0
    """Plans in flight that run it."""
    computed: int = 0
    """Upper bound of its computed tokens after all plans in flight."""
    known: int = 0
    """Upper bound of its known tokens after all plans in flight."""
    prefill_target: int = 0
    """Tokens known when it was admitted: room for them is kept from then on."""
    is_exact: bool = True
    """computed and known are what will be, unless it stops."""
    computed_at_least: int = 0
    """While not exact: lower bound of its computed tokens after all plans in flight."""
    pending_budgets: list[int] = field(default_factory=list)
    """While not exact: the budgets of the plans in flight that run it."""
    computed_in_result: int = 0
    """Computed tokens as of the last result."""
    held: int = 0
    """Blocks it held as of the last result."""
    pledge: int = 0
    """Upper bound of its blocks after all plans in flight, room for prefill_target included."""
    maybe_shared: bool = False
    """Its next write may hit a shared block, which costs one block more."""
    fork_step: int = 0
    """The last plan that forked it or made it; results from before do not know what it shares."""

    @property
    def finished(self) -> bool:
        """It has ended."""
        return self.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED

    def start(self, *, computed: int, known: int, is_exact: bool) -> None:
        """It enters the shard: by admission, or forked from another."""
        if self.token_ids is self.group.request.prompt_token_ids:
            self.token_ids = self.token_ids.copy()
        self.computed, self.known, self.is_exact = computed, known, is_exact
        self.computed_in_result = computed if is_exact else 0
        self.computed_at_least = 0
        self.pending_budgets.clear()
        self.maybe_shared = False
        self.fork_step = 0

    def advance(self, budget: int) -> None:
        """A plan runs it with this budget: moves its bounds ahead."""
        self._extend(budget)
        if not self.is_exact:
            self.pending_budgets.append(budget)
            self.computed_at_least = min(self.computed_at_least + budget, self.prefill_target)

    def settle(self, computed: int, known: int) -> None:
        """Its first result is back: its bounds become exact."""
        later = self.pending_budgets[1:]
        self.pending_budgets.clear()
        self.is_exact = True
        self.computed, self.known = computed, known
        for budget in later:
            self._extend(budget)

    def place(self, token: int, position: int) -> bool:
        """Puts a sampled token at its position. False: it was there already. Raises ProtocolError."""
        num_known = len(self.token_ids)
        if position == num_known:
            self.token_ids.append(token)
            self.group.has_progressed = True
            return True
        if position > num_known or self.token_ids[position] != token:
            raise ProtocolError(f"token {token} at position {position} of a sequence with {num_known} tokens")
        return False

    def _extend(self, budget: int) -> None:
        self.computed = min(self.computed + budget, self.known)
        if self.computed == self.known and self.known < self.limit:
            self.known += 1


class SequenceGroup:
    """A request's sequences: admitted, preempted and resumed together."""

    __slots__ = (
        "__weakref__",
        "cleared_at",
        "deaths",
        "expected_tokens",
        "has_progressed",
        "is_condemned",
        "is_ended",
        "is_running",
        "num_cached_tokens",
        "num_passes",
        "queue_key",
        "request",
        "resumptions",
        "sequences",
        "suspicion",
        "unforked",
        "urgency",
    )

    def __init__(self, request: Request, max_model_len: int) -> None:
        self.request = request
        num_prompt = len(request.prompt_token_ids)
        limit = min(num_prompt + request.params.max_tokens, max_model_len)
        self.sequences = [Sequence(self, index, request.prompt_token_ids, limit) for index in range(request.params.n)]
        self.urgency = (request.priority, request.arrival_s)
        """Lower is more urgent: what preemption compares."""
        self.expected_tokens = 0.0
        """What its sequences are likely to yield, all together."""
        self.queue_key = 0.0
        """Its place in the waiting queue."""
        self.num_passes = 0
        """Requests behind it that were admitted before it because it did not fit."""
        self.is_running = False
        self.is_ended = False
        self.has_progressed = True
        """It has yielded a token since it was last admitted: until then it is not preempted again."""
        self.resumptions = 0
        self.num_cached_tokens: int | None = None
        """Prompt tokens a cached prefix provided when it was first admitted."""
        self.unforked: list[Sequence] = []
        """Sequences that wait for the first to compute what they share."""
        self.suspicion: Suspicion | None = None
        """Set: a step failed that had it, so that it runs alone; see suspects.py."""
        self.cleared_at = -1
        """Output tokens it had when it was last cleared of a suspicion."""
        self.deaths: Deaths | None = None
        """Of shard processes, while it ran."""
        self.is_condemned = False
        """Shard processes have died over it alone, too often: it is not run any more."""

    @property
    def num_prompt_tokens(self) -> int:
        """The prompt's length."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far, over its sequences."""
        return (
            sum(len(sequence.token_ids) for sequence in self.sequences) - len(self.sequences) * self.num_prompt_tokens
        )

    def alive(self) -> list[Sequence]:
        """Its sequences that have not ended."""
        return [sequence for sequence in self.sequences if not sequence.finished]

    def is_drained(self) -> bool:
        """No plan in flight runs any of its sequences, so that it may be admitted again."""
        return all(sequence.num_inflight == 0 for sequence in self.sequences)

    def leave(self) -> None:
        """The shard group has forgotten its sequences."""
        for sequence in self.sequences:
            sequence.num_inflight = sequence.pledge = sequence.held = 0
            sequence.seq_id = -1

    def common_length(self) -> int:
        """What its sequences share and each of them extends by a token at least."""
        num_prompt = self.num_prompt_tokens
        return num_prompt - any(len(sequence.token_ids) == num_prompt for sequence in self.alive())

    def needed_parent(self) -> Sequence | None:
        """The sequence that must stay on the shard, even if it has ended, until the others have been forked from it."""
        return next((s for s in self.sequences if s.seq_id >= 0), None) if self.unforked else None
