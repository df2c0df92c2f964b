"""The scheduler of one shard group: decides what every step runs. Pure and synchronous; time is an argument.

`schedule(now)` makes the next step plan, `update(result)` takes in the result of the oldest. Several plans may be in
flight.

A plan is filled in this order: forks that became possible; every running sequence that decodes (one token each, and its
draft tokens), most urgent first; chunks of prompts that are being prefilled; then requests from the waiting queue, as
long as tokens, slots, blocks and time (forecast.py) last. Cost per step is linear in running sequences, whatever the
queue's length.

The budget of a plan counts what is computed: a request is charged for its prompt less the prefix that is likely to be
cached, or is computed by a row before it (prefix_index.py). The shards find out how long it really is. A row that finds
less computes no more than its budget and goes on in a later plan; one that finds more computes less. Until its result
is back, tokens are planned as if the guess were right, and blocks are reserved as if nothing were cached. A request
that has found less goes back to the queue, once, so that of several which miss the same prefix only one computes it.

A request that does not fit is passed over, at most MAX_PASSES times; then nobody overtakes it any more. When a running
sequence needs a block and none is left, the least urgent request is preempted: released, and admitted again later with
the tokens it has. Urgency is (priority, arrival) and nothing else. A request that was resumed is not preempted again
before it has yielded a token, except for one of a strictly more urgent priority.
While there are suspects (suspects.py), one of them runs alone in every other plan, and no two plans are in flight.
A request with a grammar enters the queue when the grammar is ready (grammars.py); others are admitted meanwhile.
"""

from collections import deque
from collections.abc import Iterable

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.request import Request
from pagewire_router.scheduling.beam_steps import BeamSteps
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.deadlines import Deadlines
from pagewire_router.scheduling.drafts import UnverifiedDrafts, reserve_drafts
from pagewire_router.scheduling.forecast import Forecast, Verdict
from pagewire_router.scheduling.grammars import Grammars
from pagewire_router.scheduling.micro_batches import micro_batch
from pagewire_router.scheduling.observer import SchedulerObserver
from pagewire_router.scheduling.plans import PlanInFlight, Progress, TokenCounts, take_prompt_scores
from pagewire_router.scheduling.residents import Residents
from pagewire_router.scheduling.result_rows import take_rows
from pagewire_router.scheduling.sequence import ProtocolError, Sequence, SequenceGroup
from pagewire_router.scheduling.sequence_state import SequenceState
from pagewire_router.scheduling.stateful_prefix_index import prefix_index
from pagewire_router.scheduling.suspects import Queue, Suspects, note_losses
from pagewire_router.scheduling.waiting_queue import WaitingQueue

MAX_PASSES = 32
"""Admissions that may overtake a request which does not fit."""
MAX_LOOK_AHEAD = 8
"""Waiting requests that are looked at in one step beyond those admitted."""
RECHECK_S = 0.1
"""A waiting request that might have become hopeless, and has not, is looked at again after so long."""


class Scheduler:
    """Waiting and running requests of one shard group."""

    def __init__(self, limits: GroupLimits, observer: SchedulerObserver | None = None, num_ranks: int = 1) -> None:
        self.limits = limits
        self.waiting = WaitingQueue()
        self._max_chunk = limits.cache_groups().max_chunk
        self._residents = Residents(limits)
        self.running = self._residents.running
        """Admitted requests, most urgent first."""
        self.suspects = Suspects()
        self.grammars = Grammars(num_ranks)
        self.prefixes = prefix_index(limits)
        """What the shard group's prefix cache holds. A new epoch's snapshot is for the caller to add."""
        self.num_preemptions = 0
        self.tokens = TokenCounts()
        self._beams = BeamSteps(self._residents, self.tokens)
        self.forecast = Forecast(limits, self.running, self.waiting)
        self.given_up: list[SequenceGroup] = []
        """Requests that were ended since they could not finish in time, until somebody tells their clients."""
        self.is_admitting = True
        """False while the shard group drains: what runs goes on, nothing is added."""
        self._observer = observer or SchedulerObserver()
        self.num_draft_tokens = 0
        """Draft tokens that each decoding row verifies, at most. Shards that make drafts say how many they can."""
        self._max_inflight = 1
        self._inflight: deque[PlanInFlight] = deque()
        self._unverified = UnverifiedDrafts()
        self._deadlines = Deadlines()
        self._now = 0.0
        self.last_completed = PlanInFlight(shard_pb2.StepPlan(), 0)
        """The plan whose result came last."""
        self._last_step = 0

    @property
    def num_inflight(self) -> int:
        """Plans whose results are not back."""
        return len(self._inflight)

    @property
    def num_running_sequences(self) -> int:
        """Sequences admitted to the shard group, those that wait to be forked included."""
        return self._residents.num_slots_used

    @property
    def free_blocks(self) -> int:
        """Free blocks as of the last result."""
        return self._residents.ledger.free

    def has_work(self) -> bool:
        """Whether something waits, runs or is to be released."""
        return bool(self.running or self._residents.has_releases or self.num_waiting)

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted, suspects and those whose grammar is not ready included."""
        return len(self.waiting) + len(self.suspects) + self.grammars.num_waiting

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens that the requests that wait have come with, suspects excepted."""
        return self.waiting.num_tokens + self.grammars.num_tokens

    def reset(self, free_blocks: int, max_inflight: int = 1) -> None:
        """A new epoch: the shard group knows no sequences. What ran waits to be admitted again.

        max_inflight: the epoch's, after which shards count: the counts of step k are taken over with plan
        k + max_inflight.
        """
        self.is_admitting = True
        self._max_inflight = max_inflight
        self._inflight.clear()
        self._unverified.clear()
        self._last_step = 0
        self.prefixes.clear()
        self.forecast.clear()
        ran = self._residents.reset(free_blocks)
        for group in ran:
            group.preempt()
        # Also those that wait: a plan in flight may have made them suspects, and their grammars are to be asked for.
        waiting = [*self.suspects.take_all(), *iter(self.waiting.pop, None), *self.grammars.take_waiting()]
        self.grammars.reset()
        for group in [*waiting, *ran]:
            group.forget_plans()
            self._put_back(group)

    def add(self, request: Request) -> SequenceGroup:
        """Puts a request into the waiting queue.

        Raises:
            RequestTooLong: it could not run even if it were alone.
            StepFailed: too many shards were lost over it.
        """
        group = SequenceGroup(request, self.limits.max_model_len)
        self.limits.check_fits(request)
        if request.num_shard_losses:
            note_losses(group)
        self.adopt(group)
        return group

    def adopt(self, group: SequenceGroup) -> None:
        """Puts a request into the waiting queue, with the tokens it has: it may come from another shard group."""
        self.forecast.on_arrival(group, self._now)
        if group.request.deadline_s is not None:
            at_s = self.forecast.latest_start_s(group, self._now)
            self._deadlines.push(at_s, group, len(self.waiting) + len(self.running))
        self._put_back(group)

    def hand_over(self) -> list[SequenceGroup]:
        """Removes and returns all requests, for other shard groups to adopt."""
        self.reset(0)
        self._deadlines.clear()
        groups = [*self.suspects.take_all(), *iter(self.waiting.pop, None), *self.grammars.take_waiting()]
        self.grammars.reset()
        return groups

    def groups_in_flight(self, step: int | None = None) -> list[SequenceGroup]:
        """The requests that the plan of this step runs, None: that all plans in flight run; also those that ended."""
        plans = (plan for plan in self._inflight if step in (None, plan.step))
        return list(dict.fromkeys(sequence.group for plan in plans for sequence in plan.sequences))

    # The end of requests.

    def end(self, group: SequenceGroup) -> None:
        """Ends a whole request from outside: aborted, failed or too late. Idempotent."""
        for sequence in group.unfinished():
            self.finish(sequence, inference_pb2.FINISH_REASON_ABORT)

    def finish(self, sequence: Sequence, reason: "inference_pb2.FinishReason.ValueType") -> None:
        """Ends one sequence; its blocks go back with the next plan. Idempotent."""
        if sequence.is_finished:
            return
        group, was_running = sequence.group, sequence.group.is_running
        sequence.finish_reason = reason
        self.forecast.on_end(sequence, self._now, is_complete=reason != inference_pb2.FINISH_REASON_ABORT)
        self._residents.finish(sequence)
        if group.is_finished:
            self.waiting.on_ended(group)
            self._observer.on_finished(group)
            if was_running:
                self.running.remove(group)
            elif group in self.waiting:
                self.waiting.remove(group)
            self.suspects.discard(group)
            self.grammars.discard(group)

    def take_expired(self, now: float) -> list[SequenceGroup]:
        """Ends requests whose deadline has passed, and returns them; gives up those that cannot meet it any more."""
        self._now = now
        expired = []
        for group in self._deadlines.pop_due(now):
            deadline_s = group.request.deadline_s
            assert deadline_s is not None
            if deadline_s <= now:
                self.end(group)
                expired.append(group)
            elif not group.is_running and self.forecast.is_hopeless(group, now):
                self._give_up(group)
            else:
                at_s = deadline_s if group.is_running else self.forecast.latest_start_s(group, now)
                self._deadlines.push(max(at_s, min(now + RECHECK_S, deadline_s)), group, len(self.waiting))
        return expired

    def _give_up(self, group: SequenceGroup) -> None:
        self.end(group)
        self.given_up.append(group)

    # Making a plan.

    def schedule(self, now: float) -> shard_pb2.StepPlan | None:
        """The next plan, None if there is nothing to do. `now` is on the clock of arrival_s and deadline_s."""
        self._now = now
        if not self.suspects:
            return self._plan(self.running, self.waiting, now)
        if self._inflight:
            return None  # One plan at a time, so that it is certain which one fails.
        return self.suspects.plan(self.running, self.waiting, lambda groups, queue: self._plan(groups, queue, now))

    def _plan(self, groups: list[SequenceGroup], queue: Queue | None, now: float) -> shard_pb2.StepPlan | None:
        """A plan that runs these of the running requests and admits others from the queue."""
        num_tokens = self.limits.max_num_batched_tokens
        plan = PlanInFlight(shard_pb2.StepPlan(step=self._last_step + 1), num_tokens, self._max_chunk)
        self._unverified.take_over(plan, plan.step - self._max_inflight)
        self.prefixes.on_plan()
        self._residents.fork(groups, plan)
        num_shares = min(self.limits.num_stages, self._max_inflight)
        runnable = groups if num_shares == 1 else micro_batch(groups, self._inflight, num_shares)
        num_missing, prefills = self._run_decodes(runnable, plan)
        self._run_prefills(prefills, plan)
        if self.is_admitting and not num_missing and queue is not None:
            self._admit_waiting(queue, plan, now)
        self.forecast.on_plan(is_full=bool(len(self.waiting)) and plan.num_tokens_left > 0)
        self._residents.release(plan)
        if plan.is_empty:
            return None
        self._last_step = plan.step
        self._unverified.on_sent()
        self._inflight.append(plan)
        self._observer.on_plan(plan)
        return plan.close()

    def _run_decodes(self, groups: Iterable[SequenceGroup], plan: PlanInFlight) -> tuple[int, list[Sequence]]:
        """Runs one token of each decoding sequence of these requests and its draft tokens, most urgent first.

        Returns the blocks that running sequences lack, and the sequences that prefill.
        """
        ledger, num_tokens_left = self._residents.ledger, plan.num_tokens_left
        running = SequenceState.RUNNING
        is_drafting = self.num_draft_tokens > 0 or self._has_drafts_in_flight()
        num_missing = 0
        prefills: list[Sequence] = []
        for group in groups:
            if group.beams is not None:
                plan.num_tokens_left = num_tokens_left
                if num_more := self._beams.run(group, plan, ledger.available - num_missing, prefills):
                    num_missing += num_more
                    self._preempt_for(group, num_missing)
                num_tokens_left = plan.num_tokens_left
                continue
            for sequence in group.sequences:
                if sequence.state is not running:
                    if sequence.state is SequenceState.ADMITTED and sequence.num_tokens < sequence.max_len:
                        prefills.append(sequence)
                    continue
                num_tokens, num_computed = sequence.num_tokens, sequence.num_computed_tokens + 1
                if num_tokens >= sequence.max_len and num_tokens - sequence.num_unverified_tokens >= sequence.max_len:
                    continue  # A plan in flight samples its last token.
                if num_tokens != num_computed:
                    prefills.append(sequence)
                    continue
                if num_computed > sequence.num_reserved_tokens:
                    num_more = ledger.num_missing(sequence, num_computed)
                    if num_more and num_more > ledger.available - num_missing:
                        num_missing += num_more
                        self._preempt_for(group, num_missing)
                        continue
                    ledger.reserve(sequence, num_more, num_computed)
                if num_tokens_left == 0:
                    plan.num_tokens_left = 0
                    return num_missing, prefills
                num_tokens_left -= 1
                if is_drafting:
                    most = min(self.num_draft_tokens, num_tokens_left)
                    num_drafts = reserve_drafts(sequence, most, ledger, num_missing)
                    num_tokens_left -= num_drafts
                    plan.draft(sequence, num_drafts)
                    continue
                sequence.num_computed_tokens = num_computed
                sequence.num_tokens = num_tokens + 1
                sequence.num_inflight_runs += 1
                plan.sequences.append(sequence)
                plan.num_scheduled_tokens.append(1)
        plan.num_tokens_left = num_tokens_left
        return num_missing, prefills

    def _has_drafts_in_flight(self) -> bool:
        return bool(self._unverified) or any(plan.draft_rows for plan in self._inflight)

    def _run_prefills(self, prefills: Iterable[Sequence], plan: PlanInFlight) -> None:
        """Runs chunks of prompts whose blocks were reserved at admission."""
        ledger = self._residents.ledger
        for sequence in prefills:
            if plan.num_tokens_left == 0:
                break
            num_computed = sequence.num_likely_computed_tokens
            if sequence.state is SequenceState.ADMITTED:
                num_remaining = sequence.num_admitted_tokens - num_computed
            else:
                num_remaining = sequence.num_tokens - num_computed
            budget = plan.max_budget(sequence, num_computed, max(1, num_remaining))
            num_computed_after = sequence.num_computed_after(budget)
            num_more = ledger.num_missing(sequence, num_computed_after)
            if num_more <= max(0, ledger.available):
                ledger.reserve(sequence, num_more, num_computed_after)
                plan.run(sequence, budget, is_chunk=num_remaining > 0)
                plan.num_prompt_tokens += budget - 1
                if num_remaining > 0:
                    self.prefixes.expect(plan, sequence, num_computed, sequence.num_likely_computed_tokens)

    # Admission.

    def _admit_waiting(self, queue: Queue, plan: PlanInFlight, now: float) -> None:
        """Admits what fits, in order."""
        passed: list[SequenceGroup] = []
        residents, max_num_seqs = self._residents, self.limits.max_num_seqs
        while plan.num_tokens_left > 0 and residents.num_slots_used < max_num_seqs and len(passed) < MAX_LOOK_AHEAD:
            group = queue.pop(only_few_logprobs=any(other.num_many_logprobs for other in passed))
            if group is None:
                break
            if not (group.is_drained and residents.has_room_in_results(group, passed) and residents.fits(group)):
                passed.append(group)
                if group.num_passes >= MAX_PASSES:
                    break
                continue
            verdict = self._verdict(group, now)
            if verdict is Verdict.GIVE_UP:
                self._give_up(group)
                continue
            if verdict is Verdict.HOLD:
                passed.append(group)
                break
            self._admit(group.leader(), plan)
            if group.request.scheduled_s is None:
                group.request.scheduled_s = now
            for overtaken in passed:
                overtaken.num_passes += residents.has_room_in_results(overtaken)
        for group in passed:
            queue.push(group)

    def _admit(self, leader: Sequence, plan: PlanInFlight) -> None:
        """Admits a request, charged for what is not likely to be cached."""
        prefix = leader.hash_prefix(self.limits.block_size, self.limits.longest_short)
        num_guessed = self.prefixes.num_cached_tokens(prefix, leader.group)
        self.waiting.on_admitted(leader.group)
        self.grammars.on_admit(leader.group, plan.step)
        self._residents.admit(leader, num_guessed, plan, self.prefixes.checkpoints(prefix, num_guessed))
        self.prefixes.expect(plan, leader, leader.num_guessed_tokens, leader.num_likely_computed_tokens)

    def _verdict(self, group: SequenceGroup, now: float) -> Verdict:
        if not self._deadlines:
            return Verdict.ADMIT
        return self.forecast.verdict(group, now, self._residents.num_slots_used)

    # Making room.

    def _preempt_for(self, urgent: SequenceGroup, num_blocks: int) -> None:
        """Releases the least urgent requests until num_blocks will be free, as long as `urgent` is not among them.

        Called while `running` is walked from the front: what is removed here has not been reached yet.
        """
        for group in reversed(self.running):
            if self._residents.num_blocks_to_come >= num_blocks or group is urgent:
                return
            if group.has_progressed or group.request.priority > urgent.request.priority:
                self._preempt(group)

    def _preempt(self, group: SequenceGroup) -> None:
        self.num_preemptions += 1
        self._send_back(group)

    def _send_back(self, group: SequenceGroup) -> None:
        """Releases a running request, to be admitted again."""
        self._observer.on_preempted(group)
        self._residents.preempt(group)
        self._put_back(group)

    def _put_back(self, group: SequenceGroup) -> None:
        self.suspects.discard(group)
        if not self.grammars.holds(group):
            (self.waiting if group.suspicion is None else self.suspects).push(group)

    # Grammars.

    def take_messages(self) -> list[shard_pb2.RouterMessage]:
        """Removes and returns what all ranks have to be told before the next plan."""
        return self.grammars.take_messages(self._inflight[0].step if self._inflight else self._last_step + 1)

    def on_prepared(self, answer: shard_pb2.Prepared) -> None:
        """Takes in the answer of one rank: requests enter the queue, or are among `grammars.refusals`."""
        for group in self.grammars.on_prepared(answer):
            self._put_back(group)

    # Taking in a result.

    def update(self, result: shard_pb2.StepResult) -> list[Progress]:
        """Takes in the result of the oldest plan in flight. Returns what it brought, finished sequences released.

        Raises:
            ProtocolError: the result is not that plan's, or contradicts earlier ones.
        """
        plan = self._inflight.popleft() if self._inflight else None
        if plan is None or plan.step != result.step:
            raise ProtocolError(f"result of step {result.step}; expected {plan.step if plan else 'none'}")
        self._residents.on_result(plan, result)
        self.prefixes.update(result.cache_hashes_added, result.cache_hashes_removed)
        self.prefixes.on_result(plan)
        self.tokens.add_first_runs(plan, result)
        self.last_completed = plan
        self._observer.on_result(plan, result)
        scored = take_prompt_scores(plan, result) if result.prompt_scores else None
        progress = self._take_rows(plan, result)
        self.suspects.acquit()
        return scored + progress if scored else progress

    def _take_rows(self, plan: PlanInFlight, result: shard_pb2.StepResult) -> list[Progress]:
        progress, missed, num_generated = take_rows(plan, result, self._residents, self.finish)
        self.tokens.generated += num_generated
        for group in missed:
            group.is_misguessed = True
            self.tokens.forget_first_run(group)
            self._send_back(group)
        if result.row_scores:
            progress += self._beams.take_scores(plan, result, self.finish)
        if plan.drafting:
            self._unverified.on_result(plan, result, self._residents.ledger)
        return progress
