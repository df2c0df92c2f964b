"""Forecasts when requests would finish, by the measured pace of steps, to decide what to accept, admit and give up.

Work is counted in tokens still to be sampled. A full batch of b rows does b of them in the time of a typical step, its
share of prompts included. Nothing is refused or given up for lack of time while the pace is unknown, and nothing that
could run at once.

A request with a deadline is admitted to the batch only if it would have time left to spare, since the batch may grow
while it runs; and where a larger batch brings little more than longer steps, only if those that run can bear it.
"""

import enum
import math
from dataclasses import dataclass

from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.output_lengths import OutputLengths
from pagewire_router.scheduling.pace import Pace
from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup
from pagewire_router.scheduling.waiting_queue import WaitingQueue

WAIT_SHARE = 0.35
"""On arrival, a request's estimated wait may take this share of the time that it can spare beside running."""
RUN_SHARE, LARGE_BATCH_RUN_SHARE = 0.7, 0.55
"""At admission, a request's estimated run may take this share of the time that it has left. The smaller share applies
to batches larger than worthwhile (see Pace), which may be kept smaller at little cost and may still grow."""
COLD_ROWS = 8
"""Most rows that are admitted while the pace of steps is unknown."""
OVERDUE_SHARE = 0.25
"""A sequence that is longer than expected is assumed to need this share of the expected length more."""


class Verdict(enum.Enum):
    """What to do with the request at the head of the queue, if it fits."""

    ADMIT = enum.auto()
    HOLD = enum.auto()
    """A smaller batch would serve it, or those that run, in time."""
    GIVE_UP = enum.auto()
    """It cannot finish in time any more."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated times of one request, from now on."""

    wait_s: float
    """Time until it is admitted; 0: it can run at once."""
    run_s: float
    """Time from its admission to its last token."""

    def is_in_time(self, left_s: float) -> bool:
        """Returns whether to accept a request with this much time left."""
        return self.wait_s == 0.0 or self.wait_s <= WAIT_SHARE * (left_s - self.run_s)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Sums over the running sequences, computed once for each plan."""

    num_rows: int
    expected_tokens: float
    remaining_tokens: float


class Forecast:
    """The forecast of one shard group. `running` and `waiting` are its scheduler's own, which change."""

    def __init__(self, limits: GroupLimits, running: list[SequenceGroup], waiting: WaitingQueue) -> None:
        self.pace = Pace()
        self.lengths = OutputLengths()
        self.is_full = False
        """Whether requests were left waiting by the last plan for lack of slots, blocks or time."""
        self._limits, self._running, self._waiting = limits, running, waiting
        self._summed: _Batch | None = None

    def clear(self) -> None:
        """A new epoch may have another pace."""
        self.pace.clear()
        self.on_plan(is_full=False)

    def on_plan(self, *, is_full: bool) -> None:
        """A plan was made; is_full as above."""
        self.is_full = is_full
        self._summed = None

    def on_step(self, now: float, took_s: float, step: PlanInFlight) -> None:
        """A step's result came now, so long after the one before or after its own plan was sent."""
        num_rows = len(step.sequences)
        if num_rows:
            self.pace.add(now, took_s, num_rows, step.num_prompt_tokens)

    def on_arrival(self, group: SequenceGroup, now: float) -> None:
        """Sets what the request is expected to yield."""
        group.expected_tokens = group.request.num_sequences * self._expected(group.request, now)

    def on_end(self, sequence: Sequence, now: float, *, is_complete: bool) -> None:
        """Learns from a sequence that has ended. One that was cut off might have become twice as long."""
        num_tokens = len(sequence.token_ids) - sequence.group.num_prompt_tokens
        if num_tokens and _may_stop(sequence.group.request):
            max_tokens = sequence.group.request.params.max_tokens
            if is_complete or 2 * num_tokens > self.lengths.expected(now, max_tokens):
                self.lengths.add(now, max_tokens, num_tokens if is_complete else min(2 * num_tokens, max_tokens))

    def estimate(self, request: Request, now: float) -> Estimate | None:
        """Estimates a request that would arrive now; None: the pace is unknown."""
        if not self._is_settled(now):
            return None
        tokens = self._expected(request, now)
        num_running = self._batch().num_rows
        num_rows = num_running + self._waiting.num_sequences + request.num_sequences
        if not self.is_full and num_rows <= self._limits.max_num_seqs:
            return Estimate(0.0, self._run_s(request, tokens, num_rows))
        num_rows = max(num_running if self.is_full else min(num_rows, self._limits.max_num_seqs), 1)
        ahead = self._waiting.tokens_ahead(request) + self._tokens_until_steady(num_rows)
        wait_s = max(0.0, ahead) * self.pace.typical_step_s(num_rows) / num_rows
        return Estimate(max(wait_s, self.pace.step_s(num_rows)), self._run_s(request, tokens, num_rows))

    def wait_for_all_s(self, now: float) -> float | None:
        """How long what waits now takes to be admitted; None: nothing is known."""
        if not self._is_known(now):
            return None
        num_rows = max(self._batch().num_rows, 1)
        return self._waiting.num_expected_tokens * self.pace.typical_step_s(num_rows) / num_rows

    def is_hopeless(self, group: SequenceGroup, now: float) -> bool:
        """A waiting request could not finish in time even if it were admitted now, beside what runs."""
        if not self._is_settled(now) or not self._running or _has_begun(group):
            return False
        return now + self._need_s(group, self._batch().num_rows) > _deadline_s(group)

    def verdict(self, group: SequenceGroup, now: float, num_running: int) -> Verdict:
        """Whether a request that fits is to be admitted beside num_running sequences."""
        num_rows = num_running + group.request.num_sequences
        is_tried = self._is_settled(now) and num_rows <= self.pace.max_rows
        if not num_running or _has_begun(group) or (num_rows <= COLD_ROWS and not is_tried):
            return Verdict.ADMIT
        left_s = _deadline_s(group) - now
        if not self._is_known(now):
            return Verdict.ADMIT if left_s == math.inf else Verdict.HOLD
        is_small = num_rows <= max(min(self.pace.worthwhile_rows, self.pace.max_rows), COLD_ROWS)
        if self._is_settled(now) and self._need_s(group, num_running) > left_s * (RUN_SHARE if is_small else 1.0):
            return Verdict.GIVE_UP
        if is_small:
            return Verdict.ADMIT if self._need_s(group, num_rows) <= RUN_SHARE * left_s else Verdict.HOLD
        caution = self.pace.caution(num_rows)
        step_s = caution * self.pace.typical_step_s(num_rows)
        is_tolerable = step_s <= self._tolerable_step_s(now, group.request.priority)
        is_in_time = caution * self._need_s(group, num_rows) <= LARGE_BATCH_RUN_SHARE * left_s
        return Verdict.ADMIT if is_tolerable and is_in_time else Verdict.HOLD

    def _tolerable_step_s(self, now: float, priority: int) -> float:
        """The longest step with which running requests at least as urgent as `priority` finish in time.

        Those that are too late already do not count.
        """
        step_s = self.pace.typical_step_s(self._batch().num_rows)
        tolerable_s = math.inf
        for group in self._running:
            deadline_s = group.request.deadline_s
            if deadline_s is not None and group.request.priority <= priority:
                steps = max((_remaining(s) for s in group.sequences if not s.is_finished), default=0.0)
                left_s = deadline_s - now
                if steps and steps * step_s <= left_s:
                    tolerable_s = min(tolerable_s, RUN_SHARE * left_s / steps)
        return tolerable_s

    def latest_start_s(self, group: SequenceGroup, now: float) -> float:
        """The time at which a waiting request becomes hopeless, if nothing changes."""
        deadline_s = _deadline_s(group)
        if not self._is_known(now) or _has_begun(group):
            return deadline_s
        return deadline_s - self._need_s(group, max(self._batch().num_rows, 1))

    def _is_known(self, now: float) -> bool:
        return self.pace.is_known and not self.pace.is_stale(now)

    def _is_settled(self, now: float) -> bool:
        return self._is_known(now) and self.pace.is_settled

    def _need_s(self, group: SequenceGroup, num_rows: int) -> float:
        return self._run_s(group.request, group.expected_tokens / group.request.num_sequences, num_rows)

    def _run_s(self, request: Request, num_tokens: float, num_rows: int) -> float:
        """Returns the time from admission to the last token in a batch of num_rows."""
        prompt_s = len(request.prompt_token_ids) * self.pace.per_prompt_token_s
        return prompt_s + num_tokens * self.pace.typical_step_s(num_rows)

    def _expected(self, request: Request, now: float) -> float:
        """Tokens that each of its sequences is likely to yield."""
        max_tokens = request.params.max_tokens
        return self.lengths.expected(now, max_tokens) if _may_stop(request) else float(max_tokens)

    def _tokens_until_steady(self, num_rows: int) -> float:
        """Returns the tokens that running sequences must yield beyond half their expected lengths.

        A batch of mixed ages has half of its tokens left on average.
        """
        batch, waiting = self._batch(), self._waiting
        num_all = batch.num_rows + waiting.num_sequences
        mean = (batch.expected_tokens + waiting.num_expected_tokens) / num_all if num_all else 0.0
        return batch.remaining_tokens - num_rows * mean / 2

    def _batch(self) -> _Batch:
        if self._summed is None:
            alive = [sequence for group in self._running for sequence in group.sequences if not sequence.is_finished]
            expected = sum(group.expected_tokens for group in self._running)
            self._summed = _Batch(len(alive), expected, sum(map(_remaining, alive)))
        return self._summed


def _remaining(sequence: Sequence) -> float:
    """Tokens that it is likely to yield yet."""
    num_known = len(sequence.token_ids)
    expected = sequence.group.expected_tokens / sequence.group.request.num_sequences
    rest = expected - (num_known - sequence.group.num_prompt_tokens)
    return min(float(sequence.max_len - num_known), max(rest, OVERDUE_SHARE * expected, 1.0))


def _may_stop(request: Request) -> bool:
    """It may end before max_tokens."""
    params = request.params
    return bool(request.eos_token_ids or params.stop or params.stop_token_ids)


def _has_begun(group: SequenceGroup) -> bool:
    """It was admitted before, and its client may have seen tokens: it keeps its place until its deadline."""
    return group.request.scheduled_s is not None


def _deadline_s(group: SequenceGroup) -> float:
    deadline_s = group.request.deadline_s
    return math.inf if deadline_s is None else deadline_s
