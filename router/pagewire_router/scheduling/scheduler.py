"""The scheduler of one shard group: decides what every step runs. Pure and synchronous; time is an argument.

`schedule(now)` makes the next step plan, `update(result)` takes in what came of one. Several plans may be in flight.

A plan is filled in this order: forks that became possible; every running sequence that decodes (one token each), most
urgent first; chunks of prompts that are being prefilled; then requests from the waiting queue, as long as tokens,
slots, blocks and time (forecast.py) last. Cost per step is linear in running sequences, whatever the queue's length.

A request that does not fit is passed over, at most MAX_PASSES times; then nobody overtakes it any more. When a running
sequence needs a block and none is left, the least urgent request is preempted: released, and admitted again later with
the tokens it has. Urgency is (priority, arrival) and nothing else. A request that was resumed is not preempted again
before it has yielded a token, except for one of a strictly more urgent priority.
While there are suspects (suspects.py), one of them runs alone in every other plan, and no two plans are in flight.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import BlockLedger
from pagewire_router.scheduling.deadlines import Deadlines
from pagewire_router.scheduling.forecast import Forecast, Verdict
from pagewire_router.scheduling.plan_builder import add_admit, fork_children
from pagewire_router.scheduling.scheduling_reports import SchedulingReports
from pagewire_router.scheduling.sequence import ProtocolError, Sequence, SequenceGroup
from pagewire_router.scheduling.step_records import GroupLimits, PlanInFlight, Progress, TokenCounts
from pagewire_router.scheduling.suspects import Queue, Suspects
from pagewire_router.scheduling.waiting_queue import WaitingQueue

MAX_PASSES = 32
"""Admissions that may overtake a request which does not fit."""
MAX_LOOK_AHEAD = 8
"""Waiting requests that are looked at in one step beyond those admitted."""
RECHECK_S = 0.1
"""A waiting request that might have become hopeless, and has not, is looked at again after so long."""

_STOP, _LENGTH = inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_LENGTH
_STOP_TOKEN, _STOP_ERROR = shard_pb2.STOP_REASON_TOKEN, shard_pb2.STOP_REASON_ERROR


class Scheduler:
    """Waiting and running requests of one shard group."""

    def __init__(self, limits: GroupLimits) -> None:
        self.limits = limits
        self.waiting = WaitingQueue()
        self.running: list[SequenceGroup] = []
        """Admitted requests, most urgent first."""
        self.suspects = Suspects()
        self.num_preemptions = 0
        self.tokens = TokenCounts()
        self.reports = SchedulingReports()
        self.forecast = Forecast(limits, self.running, self.waiting)
        self.given_up: list[SequenceGroup] = []
        """Requests that were ended since they could not finish in time, until somebody tells their clients."""
        self.is_admitting = True
        """False while the shard group drains: what runs goes on, nothing is added."""
        self._ledger = BlockLedger(limits.block_size, limits.num_blocks)
        self._inflight: deque[PlanInFlight] = deque()
        self._releases: list[int] = []
        """seq_ids that the next plan releases."""
        self._releasing_blocks = 0
        """Blocks that releases queued or in flight give back at most."""
        self._deadlines = Deadlines()
        self._now = 0.0
        self.last_result = PlanInFlight(0)
        """The plan whose result came last."""
        self._last_step = 0
        self._last_seq_id = 0
        self._num_slots_used = 0

    @property
    def num_inflight(self) -> int:
        """Plans whose results are not back."""
        return len(self._inflight)

    @property
    def num_running_sequences(self) -> int:
        """Sequences admitted to the shard group, those that wait to be forked included."""
        return self._num_slots_used

    @property
    def free_blocks(self) -> int:
        """Free blocks as of the last result."""
        return self._ledger.free

    def has_work(self) -> bool:
        """Something waits, runs or is to be released."""
        return bool(self.running or self._releases or len(self.waiting) or self.suspects)

    def reset(self, free_blocks: int) -> None:
        """A new epoch: the shard group knows no sequences. What ran waits to be admitted again."""
        self.is_admitting = True
        self._inflight.clear()
        self._releases.clear()
        self._releasing_blocks = self._num_slots_used = 0
        self._last_step = self._last_seq_id = 0
        self._ledger = BlockLedger(self.limits.block_size, free_blocks)
        self.forecast.clear()
        running, self.running[:] = self.running.copy(), []
        for group in [*running, *self.waiting, *self.suspects]:
            group.leave()
        for group in running:
            self._requeue(group)
        for group in self.waiting:
            if group.suspicion is not None:  # It was preempted by a plan in flight.
                self.waiting.remove(group)
                self.suspects.push(group)

    def add(self, request: Request) -> SequenceGroup:
        """Puts a request into the waiting queue.

        Raises:
            RequestTooLong: it could not run even if it were alone.
        """
        group = SequenceGroup(request, self.limits.max_model_len)
        self.limits.check_fits(request)
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
        """All requests, for other shard groups to adopt. From then on they are none of this one's business."""
        self.reset(0)
        self._deadlines.clear()
        return [*self.suspects.take_all(), *iter(self.waiting.pop, None)]

    def groups_in_flight(self, step: int | None = None) -> list[SequenceGroup]:
        """The requests that the plan of this step runs, None: that all plans in flight run; also those that ended."""
        records = (record for record in self._inflight if step in (None, record.step))
        return list(dict.fromkeys(sequence.group for record in records for sequence in record.sequences))

    def end(self, group: SequenceGroup) -> None:
        """Ends a whole request from outside: aborted, failed or too late. Idempotent."""
        for sequence in group.alive():
            self.finish(sequence, inference_pb2.FINISH_REASON_ABORT)

    def finish(self, sequence: Sequence, reason: "inference_pb2.FinishReason.ValueType") -> None:
        """Ends one sequence; its blocks go back with the next plan. Idempotent."""
        if sequence.finished:
            return
        sequence.finish_reason = reason
        self.forecast.on_end(sequence, self._now, is_complete=reason != inference_pb2.FINISH_REASON_ABORT)
        group = sequence.group
        if group.is_running:
            if sequence in group.unforked:
                # It was never on the shard, but a slot and blocks were kept for it.
                parent = group.needed_parent()
                group.unforked.remove(sequence)
                self._ledger.forget(sequence)
                self._num_slots_used -= 1
                if parent is not None and parent.finished and not group.unforked:
                    self._depart(parent)
            elif sequence is not group.needed_parent():
                self._depart(sequence)
        if all(s.finished for s in group.sequences):
            group.is_ended = True
            self.reports.on_end(group)
            if group.is_running:
                group.is_running = False
                self.running.remove(group)
                for kept in group.sequences:
                    if kept.seq_id >= 0:
                        self._depart(kept)
            elif group in self.waiting:
                self.waiting.remove(group)
            self.suspects.discard(group)

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
        plan = shard_pb2.StepPlan(step=self._last_step + 1)
        record = PlanInFlight(plan.step)
        for group in groups:
            if group.unforked:
                self._fork(group, plan)
        budgets: list[int] = []
        left, num_short, prefills = self._run_decodes(groups, record, budgets)
        left = self._run_prefills(prefills, record, budgets, left)
        if self.is_admitting and not num_short and queue is not None:
            left = self._admit_waiting(queue, plan, record, budgets, left, now)
        self.forecast.on_plan(is_full=bool(len(self.waiting)) and left > 0)
        self._release(plan, record)
        if not (record.sequences or plan.release_seq_ids or plan.forks):
            return None
        plan.run_seq_ids.extend([sequence.seq_id for sequence in record.sequences])
        plan.run_token_budgets.extend(budgets)
        self._last_step = plan.step
        self._inflight.append(record)
        return plan

    def _run_decodes(
        self, groups: list[SequenceGroup], record: PlanInFlight, budgets: list[int]
    ) -> tuple[int, int, list[Sequence]]:
        """Runs one token of each decoding sequence of these requests, most urgent first.

        Returns the tokens left, the blocks that running sequences lack, and the sequences that prefill.
        """
        left = self.limits.max_num_batched_tokens
        available, block_size = self._ledger.available, self.limits.block_size
        num_short = 0
        prefills: list[Sequence] = []
        for group in groups:
            for sequence in group.sequences:
                known, computed = sequence.known, sequence.computed + 1
                if sequence.seq_id < 0 or sequence.finished or known >= sequence.limit:
                    continue
                if known != computed or not sequence.is_exact:
                    prefills.append(sequence)
                    continue
                blocks = -(-computed // block_size) + sequence.maybe_shared
                if blocks > sequence.pledge:
                    if blocks - sequence.pledge > available - num_short:
                        num_short += blocks - sequence.pledge
                        self._preempt_for(group, num_short)
                        continue
                    self._ledger.set(sequence, pledge=blocks, held=sequence.held)
                    available = self._ledger.available
                if left == 0:
                    return 0, num_short, prefills
                left -= 1
                sequence.computed = computed
                sequence.known = known + 1
                sequence.num_inflight += 1
                record.sequences.append(sequence)
                budgets.append(1)
        return left, num_short, prefills

    def _run_prefills(self, prefills: Iterable[Sequence], record: PlanInFlight, budgets: list[int], left: int) -> int:
        """Runs chunks of prompts whose blocks were pledged at admission. Returns the tokens left."""
        for sequence in prefills:
            if left == 0:
                break
            start = sequence.computed if sequence.is_exact else sequence.computed_at_least
            remaining = (sequence.known if sequence.is_exact else sequence.prefill_target) - start
            budget = min(left, max(1, remaining))
            if self._ledger.can_take(sequence, budget):
                self._run(sequence, budget, record, budgets)
                record.num_prompt_tokens += budget - 1
                left -= budget
        return left

    def _run(self, sequence: Sequence, budget: int, record: PlanInFlight, budgets: list[int]) -> None:
        """Adds a sequence to the plan and moves its bounds ahead."""
        sequence.advance(budget)
        self._ledger.set(sequence, pledge=max(sequence.pledge, self._ledger.bound(sequence)), held=sequence.held)
        sequence.num_inflight += 1
        record.sequences.append(sequence)
        budgets.append(budget)
        self.reports.on_chunk(sequence, budget, record)

    def _fork(self, group: SequenceGroup, plan: shard_pb2.StepPlan) -> None:
        """Forks a group's other sequences as soon as the first has computed what they share."""
        parent = group.needed_parent()
        assert parent is not None
        num_forked = fork_children(group, parent, plan, self._ledger, self._last_seq_id + 1)
        self._last_seq_id += num_forked
        if num_forked and parent.finished:
            self._depart(parent)

    def _admit_waiting(
        self, queue: Queue, plan: shard_pb2.StepPlan, record: PlanInFlight, budgets: list[int], left: int, now: float
    ) -> int:
        """Admits what fits, in order. Returns the tokens left."""
        passed: list[SequenceGroup] = []
        while left > 0 and self._num_slots_used < self.limits.max_num_seqs and len(passed) < MAX_LOOK_AHEAD:
            group = queue.pop()
            if group is None:
                break
            if group.is_drained() and self._fits_now(group):
                if (
                    self._deadlines
                    and (verdict := self.forecast.verdict(group, now, self._num_slots_used)) is not Verdict.ADMIT
                ):
                    if verdict is Verdict.GIVE_UP:
                        self._give_up(group)
                        continue
                    passed.append(group)
                    break
                leader = self._admit(group, plan)
                if group.request.scheduled_s is None:
                    group.request.scheduled_s = now
                budget = min(left, leader.prefill_target)
                self._start_prefill(leader, budget, record, budgets)
                left -= budget
                for overtaken in passed:
                    overtaken.num_passes += 1
            else:
                passed.append(group)
                if group.num_passes >= MAX_PASSES:
                    break
        for group in passed:
            queue.push(group)
        return left

    def _fits_now(self, group: SequenceGroup) -> bool:
        if self._num_slots_used + len(group.alive()) > self.limits.max_num_seqs:
            return False
        needed = self._ledger.needed_by(group)
        # One that was preempted comes back only when the others have room to grow, so that it is not thrown out again.
        headroom = len(self.running) if group.resumptions else 0
        return needed + headroom <= self._ledger.available

    def _admit(self, group: SequenceGroup, plan: shard_pb2.StepPlan) -> Sequence:
        """Admits a group by its longest sequence; the others get a slot and blocks now and are forked later."""
        alive = group.alive()
        leader = max(alive, key=lambda s: len(s.token_ids))
        common = group.common_length()
        self._num_slots_used += len(alive)
        self._last_seq_id += 1
        leader.seq_id = self._last_seq_id
        leader.prefill_target = len(leader.token_ids)
        for other in alive:
            if other is not leader:
                other.prefill_target = common
                blocks = self._ledger.blocks(len(other.token_ids) + 1) - common // self.limits.block_size
                self._ledger.set(other, pledge=blocks, held=0)
                group.unforked.append(other)
        group.is_running = True
        group.has_progressed = group.resumptions == 0
        insort(self.running, group, key=lambda g: g.urgency)
        add_admit(plan, leader)
        self.reports.on_admit(leader, plan.step)
        return leader

    def _start_prefill(self, leader: Sequence, budget: int, record: PlanInFlight, budgets: list[int]) -> None:
        num_known = leader.prefill_target
        if budget == num_known:
            leader.start(computed=0, known=num_known, is_exact=True)
        else:
            # A cached prefix may hold all but the last token.
            leader.start(computed=num_known - 1, known=num_known, is_exact=False)
        self._ledger.set(leader, pledge=0, held=0)
        self._run(leader, budget, record, budgets)

    # Making room.

    def _preempt_for(self, urgent: SequenceGroup, num_blocks: int) -> None:
        """Releases the least urgent requests until num_blocks will be free, as long as `urgent` is not among them.

        Called while `running` is walked from the front: what is removed here has not been reached yet.
        """
        for group in reversed(self.running):
            if self._ledger.available + self._releasing_blocks >= num_blocks or group is urgent:
                return
            if group.has_progressed or group.request.priority > urgent.request.priority:
                self._preempt(group)

    def _preempt(self, group: SequenceGroup) -> None:
        self.num_preemptions += 1
        self.reports.on_preempt(group)
        self.running.remove(group)
        for sequence in group.sequences:
            if sequence.seq_id >= 0:
                self._depart(sequence)
        for sequence in group.unforked:
            self._ledger.forget(sequence)
            self._num_slots_used -= 1
        self._requeue(group)

    def _requeue(self, group: SequenceGroup) -> None:
        if not group.is_running:
            return
        group.is_running = False
        group.unforked.clear()
        group.resumptions += 1
        self._put_back(group)

    def _put_back(self, group: SequenceGroup) -> None:
        (self.waiting if group.suspicion is None else self.suspects).push(group)

    def _depart(self, sequence: Sequence) -> None:
        """Takes a sequence off the shard with the next plan."""
        self._releases.append(sequence.seq_id)
        sequence.seq_id = -1
        self._releasing_blocks += sequence.held
        self._num_slots_used -= 1
        if sequence.num_inflight == 0:
            self._ledger.forget(sequence)

    def _release(self, plan: shard_pb2.StepPlan, record: PlanInFlight) -> None:
        plan.release_seq_ids.extend(self._releases)
        self._releases.clear()
        record.num_released_blocks = self._releasing_blocks - sum(p.num_released_blocks for p in self._inflight)

    # Taking in a result.

    def update(self, result: shard_pb2.StepResult) -> list[Progress]:
        """Takes in the result of the oldest plan in flight. Returns what it brought, finished sequences released.

        Raises:
            ProtocolError: the result is not that plan's, or contradicts earlier ones.
        """
        record = self._inflight.popleft() if self._inflight else None
        if record is None or record.step != result.step:
            raise ProtocolError(f"result of step {result.step}; expected {record.step if record else 'none'}")
        self._ledger.free = result.free_blocks[0]
        self._releasing_blocks -= record.num_released_blocks
        self.tokens.add_first_runs(record, result)
        self.last_result = record
        if record.traced_chunks:
            self.reports.on_result(record, result)
        logprobs = {entry.run_index: entry for entry in result.logprobs}
        tokens = iter(result.sampled_token_ids)
        progress: list[Progress] = []
        num_failed, block_size = 0, self.limits.block_size
        for i, (sequence, computed, known, sampled, stop, shared) in enumerate(
            zip(
                record.sequences,
                result.num_computed_tokens,
                result.num_known_tokens,
                result.num_sampled_tokens,
                result.stop_reasons,
                result.next_write_block_shared,
                strict=True,
            )
        ):
            sequence.num_inflight -= 1
            if sequence.seq_id < 0 or sequence.finished:
                if sequence.num_inflight == 0:
                    self._ledger.forget(sequence)
            elif (
                not sequence.is_exact
                or shared != sequence.maybe_shared
                or -(-computed // block_size) != sequence.held
                or sequence.group.unforked
            ):
                self._settle(sequence, computed, known, shared, result.step)
            if sampled and not sequence.finished:
                token = next(tokens)
                if sequence.place(token, known - sampled):
                    entry = logprobs.get(i)
                    progress.append(self._progress(sequence, token, stop, None if entry is None else [entry]))
            elif sampled:
                next(tokens)
            elif stop == _STOP_ERROR and not sequence.finished:
                progress.append(Progress.failed(sequence))
                num_failed += 1
        self.tokens.generated += len(progress) - num_failed
        self.suspects.acquit()
        return progress

    def _settle(self, sequence: Sequence, computed: int, known: int, shared: bool, step: int) -> None:
        """Re-bases a running sequence on what a result says of it."""
        sequence.computed_in_result = computed
        if not sequence.is_exact:
            sequence.settle(computed, known)
        if step >= sequence.fork_step:
            sequence.maybe_shared = shared
        self._ledger.rebase(sequence, computed)

    def _progress(
        self, sequence: Sequence, token: int, stop: int, logprobs: list[shard_pb2.SequenceLogprobs] | None
    ) -> Progress:
        reason = inference_pb2.FINISH_REASON_UNSPECIFIED
        if stop:
            reason = _STOP if stop == _STOP_TOKEN else _LENGTH
            self.finish(sequence, reason)
        return Progress(sequence, [token], logprobs, reason)
