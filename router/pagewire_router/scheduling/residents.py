"""The sequences on a shard group: their slots, blocks and seq_ids, and the ones that the next plan releases.

The scheduler decides who is admitted and preempted; this module keeps account and writes admissions, forks and
releases into the plans.
"""

from bisect import insort
from collections.abc import Iterable

from pagewire.v1 import shard_pb2
from pagewire_common.protocol import MAX_STEP_LOGPROBS

from pagewire_router.scheduling.beam_sequences import BeamSequences
from pagewire_router.scheduling.block_ledger import BlockLedger, GroupLimits
from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup
from pagewire_router.scheduling.sequence_state import ON_SHARD, SequenceEvent, SequenceState


class Residents:
    """Admitted requests of one shard group."""

    def __init__(self, limits: GroupLimits) -> None:
        self.running: list[SequenceGroup] = []
        """Admitted requests, most urgent first."""
        self.num_slots_used = 0
        """Sequences on the shard group, and those for which a slot is kept until they are forked."""
        self._limits = limits
        groups = limits.cache_groups()
        self._has_states = groups.has_states
        self._keeps_for_forks = groups.has_states or bool(groups.windows)
        """Whether shards keep what children need only if they are told so."""
        self.ledger = self._new_ledger(limits.num_blocks)
        self._forking: dict[SequenceGroup, None] = {}
        """Running requests with sequences that are still to be forked."""
        self._releases: list[int] = []
        """seq_ids that the next plan releases."""
        self._num_leaving_blocks = 0
        """Blocks that the releases of the next plan give back at most."""
        self._num_released_blocks = 0
        """Blocks that the releases of plans in flight give back at most."""
        self._last_seq_id = 0

    @property
    def has_releases(self) -> bool:
        """Whether the next plan has sequences to release."""
        return bool(self._releases)

    @property
    def num_blocks_to_come(self) -> int:
        """Blocks that can be reserved once all releases queued or in flight are done, at most."""
        return self.ledger.available + self._num_leaving_blocks + self._num_released_blocks

    def reset(self, free_blocks: int) -> list[SequenceGroup]:
        """The shard group has forgotten all sequences. Returns the requests that ran; they wait again."""
        self.ledger = self._new_ledger(free_blocks)
        self._forking.clear()
        self._releases.clear()
        self._num_leaving_blocks = self._num_released_blocks = self.num_slots_used = self._last_seq_id = 0
        running, self.running[:] = self.running.copy(), []
        return running

    def _new_ledger(self, free_blocks: int) -> BlockLedger:
        return BlockLedger(self._limits.block_size, free_blocks, self._limits.cache_groups())

    # Entering.

    def fits(self, group: SequenceGroup) -> bool:
        """Whether slots and blocks suffice to admit a request."""
        unfinished, num_slots = group.unfinished(), group.num_slots
        if self.num_slots_used + num_slots > self._limits.max_num_seqs:
            return False
        lengths = [len(sequence.token_ids) + 1 for sequence in unfinished]
        lengths += lengths[:1] * (num_slots - len(lengths))  # Beams to come are as long.
        num_blocks = self.ledger.num_blocks_to_admit(lengths, group.num_shared_tokens())
        # One that was preempted comes back only when the others have room to grow, so that it is not thrown out again.
        headroom = len(self.running) if group.was_preempted else 0
        return num_blocks + headroom <= self.ledger.available

    def has_room_in_results(self, group: SequenceGroup, ahead: Iterable[SequenceGroup] = ()) -> bool:
        """Whether the results of steps have room for a request's log-probabilities, and no request ahead of it waits
        for that. Requests that ask for few never wait: they may overtake others that do as often as they come."""
        num_logprobs = group.num_many_logprobs
        if not num_logprobs:
            return True
        if any(other.num_many_logprobs for other in ahead):
            return False
        return num_logprobs + sum(running.num_many_logprobs for running in self.running) <= MAX_STEP_LOGPROBS

    def admit(
        self, leader: Sequence, num_guessed_tokens: int, plan: PlanInFlight, checkpoints: tuple[int, ...] = ()
    ) -> None:
        """Admits a request by its leader; its other sequences get a slot and blocks now and are forked later.

        Args:
            num_guessed_tokens: leading tokens of the leader that are likely to be cached.
            checkpoints: as Admit has them, of the leader.
        """
        group = leader.group
        unfinished = group.unfinished()
        group.num_resumed_tokens = group.num_output_tokens if group.was_preempted else None
        self.num_slots_used += group.num_slots
        if group.beams is not None:
            group.beams.num_spare_slots = group.num_slots - len(unfinished)
        for other in unfinished:
            if other is not leader:
                self._reserve_for(other, group.num_shared_tokens())
        insort(self.running, group, key=lambda g: g.urgency)
        self._admit_leader(leader, num_guessed_tokens, plan, checkpoints)

    def _reserve_for(self, sequence: Sequence, num_shared: int) -> None:
        """Reserves blocks for a sequence that is to be forked."""
        sequence.on(SequenceEvent.RESERVE)
        self._forking[sequence.group] = None
        sequence.num_admitted_tokens = num_shared
        num_blocks = self.ledger.num_blocks_to_fork(len(sequence.token_ids) + 1, num_shared)
        self.ledger.set(sequence, num_reserved=num_blocks, num_held=0)

    def _admit_leader(
        self, leader: Sequence, num_guessed_tokens: int, plan: PlanInFlight, checkpoints: tuple[int, ...]
    ) -> None:
        """Admits a sequence and runs its first chunk, which has tokens set aside for what is not cached."""
        num_tokens = len(leader.token_ids)
        fork_from = 0
        if self._keeps_for_forks and leader.group in self._forking:
            fork_from = leader.group.num_shared_tokens()
            num_guessed_tokens = min(num_guessed_tokens, fork_from // self._limits.block_size * self._limits.block_size)
        leader.on(SequenceEvent.ADMIT)
        leader.enter_shard(
            self._next_seq_id(),
            num_computed_tokens=num_tokens - 1,  # A cached prefix may hold all but the last token.
            num_tokens=num_tokens,
            num_guessed_tokens=num_guessed_tokens,
        )
        leader.fork_from = fork_from
        if self._has_states:
            leader.end_chunks(checkpoints)
        budget = plan.max_budget(leader, num_guessed_tokens, num_tokens - num_guessed_tokens)
        if budget == num_tokens:
            leader.settle(num_computed_tokens=0, num_tokens=num_tokens)
        self.ledger.set(leader, num_reserved=self.ledger.bound(leader, num_tokens), num_held=0)
        plan.admit(leader)
        plan.run(leader, budget)

    def fork(self, groups: list[SequenceGroup], plan: PlanInFlight) -> None:
        """Forks the other sequences of these requests from the first if that has computed what they share."""
        for group in [group for group in groups if group in self._forking] if self._forking else ():
            parent, children = group.parent(), group.to_fork()
            num_shared = children[0].num_admitted_tokens
            if parent.num_reported_computed_tokens < num_shared:
                continue
            ends_within_block = num_shared % self._limits.block_size != 0
            for child in children:
                self._fork_child(parent, child, num_shared, plan)
                child.next_write_block_shared = ends_within_block
                self.ledger.enter_fork(child, num_shared)
            # A beam that has been run to its last token writes no more.
            writes = group.beams is None or parent.num_computed_tokens < parent.num_tokens
            if ends_within_block and writes and not parent.is_finished:
                parent.next_write_block_shared = True
                parent.last_fork_step = plan.step
                self.ledger.rebase(parent)
            if parent.fork_from:
                plan.forked.append((parent, parent.seq_id))
            self._end_forking(group)

    def _fork_child(self, parent: Sequence, child: Sequence, num_shared: int, plan: PlanInFlight) -> None:
        child.on(SequenceEvent.FORK)
        child.enter_shard(self._next_seq_id(), num_computed_tokens=num_shared, num_tokens=len(child.token_ids))
        child.last_fork_step = plan.step
        child.num_forked_tokens = num_shared
        child.prefix = None
        plan.fork(parent, child, num_shared)

    # Beams.

    def num_blocks_to_fork_beams(self, group: SequenceGroup) -> int:
        """Blocks that the beams of a request's next step need beside those of their parents."""
        assert group.beams is not None
        num_shared, num_children = len(group.beams.to_fork[0][0].token_ids), len(group.beams.to_fork)
        num_blocks = num_children
        if num_shared % self._limits.block_size:
            # The last block is copied for all children of a parent but one, which writes where its parent would have.
            num_blocks -= len({parent for parent, _ in group.beams.to_fork})
        num_window_blocks = num_children * self.ledger.num_window_blocks_to_fork(num_shared + 1, num_shared)
        return num_blocks * self.ledger.num_full_tables + num_window_blocks

    def fork_beams(self, group: SequenceGroup, plan: PlanInFlight) -> None:
        """Replaces a request's beams by those of its next step."""
        assert group.beams is not None
        ends_within_block = len(group.beams.to_fork[0][0].token_ids) % self._limits.block_size != 0
        parents: dict[Sequence, None] = {}
        for parent, child in group.beams.to_fork:
            self._fork_child(parent, child, len(parent.token_ids), plan)
            child.next_write_block_shared = ends_within_block and parent in parents
            self.ledger.enter_fork(child, len(parent.token_ids))
            parents[parent] = None
        group.beams.num_spare_slots -= len(group.beams.to_fork)
        self.prune(parents)
        group.sequences = [child for _, child in group.beams.to_fork]
        group.beams.to_fork = []

    def prune(self, beams: Iterable[Sequence]) -> None:
        """Releases beams with the next plan. Their slots stay with their request."""
        for beam in beams:
            beam.on(SequenceEvent.FINISH)
            self._depart(beam)
            self.num_slots_used += 1
            assert beam.group.beams is not None
            beam.group.beams.num_spare_slots += 1

    def on_scored(self, beam: Sequence) -> None:
        """A beam has been scored: it writes no further block."""
        beam.next_write_block_shared = False
        self.ledger.rebase(beam)

    def _drop_spare_slots(self, beams: BeamSequences) -> None:
        self.num_slots_used -= beams.num_spare_slots
        beams.num_spare_slots = 0

    def _next_seq_id(self) -> int:
        self._last_seq_id += 1
        return self._last_seq_id

    # Leaving.

    def finish(self, sequence: Sequence) -> None:
        """A sequence ends, wherever it is. What it has goes back with the next plan, unless others need it."""
        group = sequence.group
        if sequence.state is SequenceState.FORKING:
            sequence.on(SequenceEvent.FINISH)
            self._drop_reservation(sequence)
            if not group.to_fork():
                self._end_forking(group)
        elif sequence.state not in ON_SHARD:
            sequence.on(SequenceEvent.FINISH)
        elif group in self._forking:
            sequence.on(SequenceEvent.KEEP)
            self.ledger.loosen(sequence)
        else:
            sequence.on(SequenceEvent.FINISH)
            self._depart(sequence)
        if group.beams is not None and group.is_finished:
            self._drop_spare_slots(group.beams)

    def preempt(self, group: SequenceGroup) -> None:
        """Takes a request off the shard group, to be admitted again."""
        self.running.remove(group)
        self._forking.pop(group, None)
        num_forked_tokens = min(sequence.num_forked_tokens for sequence in group.sequences)
        if group.beams is not None:
            self._drop_spare_slots(group.beams)
        for sequence in group.sequences:
            if sequence.state in ON_SHARD:
                self._depart(sequence)
            elif sequence.state is SequenceState.FORKING:
                self._drop_reservation(sequence)
        group.preempt()
        if group.beams is not None:
            # Every departure but the first one of a beam that was not forked left out what beams share.
            num_shared = min(group.beams.num_shared_tokens, num_forked_tokens)
            self._num_leaving_blocks += num_shared // self._limits.block_size * self.ledger.num_full_tables

    def _end_forking(self, group: SequenceGroup) -> None:
        """A request has no sequences left to fork: releases their parent if it has ended."""
        del self._forking[group]
        for sequence in group.sequences:
            if sequence.state is SequenceState.KEPT:
                sequence.on(SequenceEvent.RELEASE)
                self._depart(sequence)

    def _depart(self, sequence: Sequence) -> None:
        self._releases.append(sequence.seq_id)
        self._num_leaving_blocks += sequence.num_held_blocks
        if sequence.group.beams is not None:
            num_shared = sequence.num_forked_tokens // self._limits.block_size
            self._num_leaving_blocks -= num_shared * self.ledger.num_full_tables
        self.num_slots_used -= 1
        if sequence.num_inflight_runs == 0:
            self.ledger.forget(sequence)
        else:
            self.ledger.loosen(sequence)

    def _drop_reservation(self, sequence: Sequence) -> None:
        self.ledger.forget(sequence)
        self.num_slots_used -= 1

    def release(self, plan: PlanInFlight) -> None:
        """Writes all pending releases into a plan."""
        plan.message.release_seq_ids.extend(self._releases)
        self._releases.clear()
        plan.num_released_blocks, self._num_leaving_blocks = self._num_leaving_blocks, 0
        self._num_released_blocks += plan.num_released_blocks

    def on_row(self, sequence: Sequence, num_computed: int, shared: bool, step: int) -> None:
        """Re-bases the blocks of a sequence on what the result of a step says of it."""
        sequence.num_reported_computed_tokens = num_computed
        if step >= sequence.last_fork_step:
            sequence.next_write_block_shared = shared
        self.ledger.rebase(sequence, num_computed)

    def on_result(self, plan: PlanInFlight, result: shard_pb2.StepResult) -> None:
        """A plan's result is back: its releases are done, and its forks."""
        self.ledger.take_result(result.free_blocks[0], result.num_shared_window_blocks)
        self._num_released_blocks -= plan.num_released_blocks
        for parent, seq_id in plan.forked:
            if parent.seq_id == seq_id:
                parent.fork_from = 0
                if parent.runs_as(seq_id):
                    self.ledger.rebase(parent, parent.num_reported_computed_tokens)
