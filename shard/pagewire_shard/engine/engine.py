"""The shard's deterministic state machine: applies step plans to the block pool and hands batches to the runner.

Called from the step thread only. A plan is checked and applied in this order:

  1. check     whatever in it breaks the contract refuses it as a whole
  2. effects   what the samples of step k mean for the host (known tokens, accepted drafts, stops, prefix index) takes
               effect when plan k + max_inflight comes: by plan number, never by when a copy happened to finish, so that
               all ranks of a group stay identical
  3. room      what the plan changes is worked out, cached prefixes among it, and refused if slots or blocks do not
               suffice
  4. changes   forks and releases, as one permutation: children take their parents' blocks, then releases give up
               theirs, then children take slots; then admits, each from the longest prefix that the pool has cached, or
               that rows before it compute in this plan (step_prefixes.py)
  5. run       blocks for the new tokens, as many as there can be if all drafts are accepted (copied first if shared;
               sequence_blocks.py)
  6. index     blocks that are full and known become findable; what slid out of windows is given back
               (grouped_blocks.py); then the batch goes to the runner; if a grammar constrains a row (constraints.py)
               or logits processors read the tokens, its forward pass alone

A plan that cannot be applied raises PlanRefused before step 4, so that nothing of it is applied; it ends the epoch. The
index never names a block whose content was not computed: only a step that breaks can leave such blocks behind, and
then all of them are forgotten (reset_cache).
"""

import hashlib
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from itertools import repeat

import grpc
from pagewire.v1 import shard_pb2
from pagewire_common.cache_groups import CacheGroup, num_states_of, table_windows

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.constraints import Constraints
from pagewire_shard.engine.grouped_blocks import GroupedBlocks
from pagewire_shard.engine.launched_step import LaunchedStep
from pagewire_shard.engine.plan_check import PlanCheck, malformed
from pagewire_shard.engine.runner import RunBatch, Runner
from pagewire_shard.engine.sequence import Sequence, admitted
from pagewire_shard.engine.sequence_blocks import SequenceBlocks
from pagewire_shard.engine.stateful_blocks import StatefulBlocks
from pagewire_shard.engine.step_changes import Row, StepChanges
from pagewire_shard.engine.step_prefixes import Loan
from pagewire_shard.errors import PlanRefused, RankRefused
from pagewire_shard.grammar.grammars import Grammars


class Engine:
    """Host state of one shard: sequences, slots, block tables, and the steps whose effects are still to come."""

    def __init__(
        self,
        info: shard_pb2.ShardInfo,
        runner: Runner,
        pool: BlockPool,
        grammars: Grammars | None = None,
        cache_bytes: int = 0,
    ) -> None:
        """grammars: those that admissions may name; None: they may name none. cache_bytes: memory of the pools.

        The runner has logits processors if the info names some.
        """
        self.info = info
        self.pool = pool
        self.cache_bytes = cache_bytes
        self._constraints = None if grammars is None else Constraints(grammars)
        self._num_constrained = 0
        """Sequences that a grammar constrains."""
        self._has_processors = bool(info.logits_processors) and runner.samples
        self._runner = runner
        num_states = num_states_of(groups := _groups(info))
        self.states = BlockPool(num_states, pool.block_size)
        """The slots of recurrent state, those of sequences and those of checkpoints."""
        self._blocks = _blocks(table_windows(groups), pool, self.states)
        self._check = PlanCheck(info)
        self._sequences: dict[int, Sequence] = {}
        self._free_slots: list[int] = []
        self._effects: deque[LaunchedStep] = deque()
        self._max_inflight = 1
        self._last_step = 0
        self._highest_seq_id = -1
        self._digest = b""
        self._new_tokens: list[int] = []
        """Tokens that have taken effect and are not in the digest yet."""
        self.end_epoch()

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """Has on_progress called from within long steps; see StepEngine."""
        self._runner.watch_progress(on_progress)

    def begin_epoch(self, max_inflight: int) -> list[int]:
        """Starts a term with no sequences. Returns the free blocks of each cache group."""
        self._max_inflight = max_inflight
        return self.end_epoch()

    def end_epoch(self) -> list[int]:
        """Drops all sequences and the names of grammars; cached blocks stay.

        Returns the free blocks of each cache group.
        """
        self._blocks.end_epoch()
        for sequence in self._sequences.values():
            self._blocks.release(sequence)
        self._sequences.clear()
        self._num_constrained = 0
        self._effects.clear()
        if self._constraints is not None:
            self._constraints.end_epoch()
        self._runner.end_epoch()
        self._free_slots = list(range(self.info.max_num_seqs - 1, -1, -1))
        self._last_step = 0
        self._highest_seq_id = -1
        self._digest = b""
        self._new_tokens.clear()
        for pool in (self.pool, self.states):
            pool.take_index_changes()
        return [self.pool.num_free]

    def reset_cache(self) -> None:
        """Forgets all that is cached: a step failed, so what the index promises may not have been computed."""
        for pool in (self.pool, self.states):
            pool.forget_all()

    def cached_hashes(self) -> list[int]:
        """The wire hashes of all cached blocks, and of checkpoints."""
        return self.pool.cached_hashes() + self.states.cached_hashes()

    def launch(self, plan: shard_pb2.StepPlan) -> LaunchedStep:
        """Applies a plan and starts its forward pass.

        Raises:
            PlanRefused: the plan is malformed (INVALID_ARGUMENT) or does not fit (RESOURCE_EXHAUSTED). The epoch has
                to end.
        """
        if self._effects and self._effects[-1].awaits_tokens:
            self.sample(self._effects[-1])
        started = time.perf_counter()
        if plan.step != self._last_step + 1:
            raise malformed(f"step {plan.step} follows step {self._last_step}; expected {self._last_step + 1}")
        self._check.check(plan, self._sequences, self._highest_seq_id)
        self._apply_effects(plan.step - self._max_inflight)
        changes = self._work_out(plan)
        self._check_room(changes, plan.step)
        # From here on nothing is refused.
        self._last_step = plan.step
        self._take_in(changes)
        batch = self._make_batch(changes)
        launched = LaunchedStep(plan.step, changes.rows, shard_pb2.StepResult(step=plan.step))
        launched.num_tokens = changes.num_tokens
        block_size = self.pool.block_size
        for sequence, _, _ in launched.rows:
            if len(sequence.token_ids) >= (sequence.num_indexed_blocks + 1) * block_size:
                self._blocks.index_full(sequence)
        self._blocks.after_run(changes)
        self._describe(launched)
        launched.result.timings.prepare_us = int((time.perf_counter() - started) * 1e6)
        if self._needs_tokens(batch):
            self._launch_forward(launched, batch)
        else:
            launched.pending_tokens = self._runner.launch(batch)
        self._effects.append(launched)
        return launched

    def _needs_tokens(self, batch: RunBatch) -> bool:
        """Whether what the batch may sample follows from tokens that may still be on their way."""
        if self._has_processors:
            return any(batch.sample_lens) or self._is_constrained(batch)
        return self._is_constrained(batch)

    def _is_constrained(self, batch: RunBatch) -> bool:
        if not self._num_constrained or not self._runner.samples:
            return False
        return any(sequence.constraint is not None for sequence in batch.sequences)

    def _launch_forward(self, launched: LaunchedStep, batch: RunBatch) -> None:
        """Launches a forward pass alone. Beside it, its masks are filled, if all tokens before it are on the host."""
        launched.batch = batch
        if self._constraints is not None and self._is_constrained(batch) and all(s.is_ready() for s in self._effects):
            self._take_tokens_before(launched)
            launched.masks = self._constraints.begin(batch)
        self._runner.forward(batch)

    def sample(self, launched: LaunchedStep) -> None:
        """Samples a step that awaits tokens: waits for those of the steps before it, and for the masks they lead to."""
        assert launched.batch is not None, f"step {launched.step} awaits no tokens"
        self._take_tokens_before(launched)
        masks = launched.masks.result() if launched.masks is not None else None
        if masks is None and self._constraints is not None and self._is_constrained(launched.batch):
            masks = self._constraints.masks(launched.batch)
        launched.pending_tokens = self._runner.sample(launched.batch, masks)
        launched.batch = launched.masks = None

    def _take_tokens_before(self, launched: LaunchedStep) -> None:
        for step in self._effects:
            if step.step < launched.step:
                step.take_tokens(self._notes_tokens())

    def _notes_tokens(self) -> bool:
        """Whether something on the host reads sampled tokens before they take effect."""
        return self._has_processors or (bool(self._num_constrained) and self._runner.samples)

    def collect(self, launched: LaunchedStep) -> shard_pb2.StepResult:
        """Waits for a step's tokens and builds its result. Steps are collected in order."""
        if launched.awaits_tokens:
            self.sample(launched)
        return launched.finish(self._notes_tokens())

    def known_sequences(self) -> dict[int, tuple[list[int], int, bool]]:
        """For each sequence its known tokens, how many of them are computed, and whether it has stopped.

        To be asked when all launched steps are collected: tokens whose effects are still to come are among them.
        """
        tokens = {seq_id: list(sequence.token_ids) for seq_id, sequence in self._sequences.items()}
        stopped = {seq_id for seq_id, sequence in self._sequences.items() if sequence.stopped}
        for launched in self._effects:
            step = launched.take_tokens(self._notes_tokens())
            end = 0
            for (sequence, _, _), count, stop in zip(launched.rows, step.num_sampled, step.stop_reasons, strict=True):
                start, end = end, end + count
                if not sequence.released and sequence.seq_id not in stopped:
                    tokens[sequence.seq_id] += step.sampled_token_ids[start:end]
                    if stop:
                        stopped.add(sequence.seq_id)
        return {
            seq_id: (known, min(self._sequences[seq_id].num_computed_tokens, len(known)), seq_id in stopped)
            for seq_id, known in tokens.items()
        }

    def _work_out(self, plan: shard_pb2.StepPlan) -> StepChanges:
        """What the plan changes; changes nothing. Raises PlanRefused."""
        sequences = self._sequences
        children = [self._child(fork) for fork in plan.forks]
        admits = [self._admitted(admit) for admit in plan.admits]
        new = {sequence.seq_id: sequence for sequence in (*children, *admits)}
        released = [sequences.get(i) or new[i] for i in plan.release_seq_ids]
        rows: list[Row] = []
        prefixes = self._blocks.prefixes()
        unmatched = dict.fromkeys(admits)
        loans: dict[Sequence, Loan] = {}
        drafts = plan.num_draft_tokens or repeat(0)
        if not admits:
            # The steady state: nobody borrows anything.
            budgets = self._budgets(plan) if self.states.num_blocks else plan.run_token_budgets
            runs = zip(plan.run_seq_ids, budgets, drafts, strict=False)
            rows = [((row := sequences.get(i) or new[i]), *row.next_row(budget, n)) for i, budget, n in runs]
            return self._with_modes(plan, StepChanges(children, admits, released, rows, loans))
        for seq_id, budget, num_drafts in zip(plan.run_seq_ids, plan.run_token_budgets, drafts, strict=False):
            sequence = sequences.get(seq_id) or new[seq_id]
            is_new = bool(unmatched) and sequence in unmatched
            if is_new:
                del unmatched[sequence]
                if loan := prefixes.find(sequence):
                    loans[sequence] = loan
            most = self._blocks.chunk_len(sequence, budget) if sequence.chunk_ends else budget
            query_len, sample_len = sequence.next_row(most, num_drafts)
            rows.append((sequence, query_len, sample_len))
            if (is_new or query_len > 1) and sample_len <= 1:
                prefixes.fill(sequence, query_len)
        for sequence in unmatched:  # Without a row it borrows nothing.
            self._blocks.prefixes().find(sequence)
        return self._with_modes(plan, StepChanges(children, admits, released, rows, loans))

    def _budgets(self, plan: shard_pb2.StepPlan) -> list[int]:
        """run_token_budgets of a plan without admissions, as far as the rows' chunks go."""
        sequences, chunk_len = self._sequences, self._blocks.chunk_len
        return [
            chunk_len(sequence, budget) if (sequence := sequences.get(seq_id)) and sequence.chunk_ends else budget
            for seq_id, budget in zip(plan.run_seq_ids, plan.run_token_budgets, strict=True)
        ]

    def _with_modes(self, plan: shard_pb2.StepPlan, changes: StepChanges) -> StepChanges:
        """The changes with the plan's run_modes, which are SAMPLE so far. Raises PlanRefused."""
        for row, mode in enumerate(plan.run_modes):
            if mode == shard_pb2.RUN_MODE_SCORE:
                sequence = changes.rows[row][0]
                if not sequence.num_scores:
                    raise malformed(f"run_modes: seq_id {sequence.seq_id} runs in mode SCORE without num_scores")
                changes.score(row)
        return changes

    def _child(self, fork: shard_pb2.Fork) -> Sequence:
        parent = self._sequences[fork.parent_seq_id]
        if fork.num_tokens > parent.num_verified_tokens:
            raise malformed(f"fork of seq_id {parent.seq_id}: it has not computed num_tokens {fork.num_tokens}")
        child = self._blocks.fork(parent, fork)
        if child is None:
            message = f"its cache groups do not keep what num_tokens {fork.num_tokens} needs"
            raise malformed(f"fork of seq_id {parent.seq_id}: {message}")
        if parent.constraint is not None and self._constraints is not None:
            num_prompt = parent.num_prompt_tokens
            num_shared = max(0, fork.num_tokens - num_prompt)
            child.constraint = self._constraints.forked(parent.constraint, child.token_ids[num_prompt:], num_shared)
        return self._noting(child)

    def _noting(self, sequence: Sequence) -> Sequence:
        """The sequence, which begins to note its tokens if something reads them."""
        if self._has_processors:
            sequence.output_ids = sequence.token_ids[sequence.num_prompt_tokens :]
        return sequence

    def _admitted(self, admit: shard_pb2.Admit) -> Sequence:
        sequence = admitted(admit, self.info.max_model_len, self.info.longest_short)
        if admit.grammar:
            try:
                if self._constraints is None:
                    raise LookupError("grammars are not served")
                sequence.constraint = self._constraints.of(admit)
            except LookupError as error:
                message = f"admit of seq_id {admit.seq_id}: {error}"
                raise RankRefused(grpc.StatusCode.INVALID_ARGUMENT, message) from None
        return self._noting(sequence)

    def _check_room(self, changes: StepChanges, step: int) -> None:
        if changes.num_tokens > self.info.max_num_batched_tokens:
            raise malformed(
                f"run_token_budgets: step {step} would compute {changes.num_tokens} tokens, drafts included, more than "
                f"max_num_batched_tokens {self.info.max_num_batched_tokens}"
            )
        num_slots = len(self._free_slots) + sum([sequence.slot >= 0 for sequence in changes.released])
        if changes.num_new_slots > num_slots:
            message = f"step {step} would hold more than max_num_seqs {self.info.max_num_seqs} sequences"
            raise PlanRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        if not self._blocks.fits(changes):
            message = f"step {step} needs more than the {self.pool.num_blocks} blocks of the pool"
            raise PlanRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, message)

    def _apply_effects(self, up_to_step: int) -> None:
        while self._effects and self._effects[0].step <= up_to_step:
            launched = self._effects.popleft()
            tokens = launched.take_tokens(self._notes_tokens())
            sampled, end = tokens.sampled_token_ids, 0
            self._new_tokens += sampled
            for i, ((sequence, _, sample_len), num_sampled, stop) in enumerate(
                zip(launched.rows, tokens.num_sampled, tokens.stop_reasons, strict=True)
            ):
                start, end = end, end + num_sampled
                if sequence.released or sequence.stopped:
                    continue
                if num_sampled == 1:
                    sequence.token_ids.append(sampled[start])
                else:
                    sequence.token_ids.extend(sampled[start:end])
                if stop:
                    sequence.stop_at(tokens.num_tokens[i], tokens.num_computed_tokens[i])
                    if stop == shard_pb2.STOP_REASON_ERROR:
                        self._blocks.forget(sequence)
                    else:
                        self._blocks.index_full(sequence)
                elif sample_len > 1:
                    sequence.settle(sample_len, num_sampled)
                    self._blocks.settle(sequence)

    def _take_in(self, changes: StepChanges) -> None:
        """Forks and releases as one permutation, then admits."""
        for child in changes.children:
            self._hold(child)
        for sequence in changes.released:
            sequence.released = True
            self._num_constrained -= sequence.constraint is not None
            del self._sequences[sequence.seq_id]
            self._blocks.release(sequence)
            if sequence.slot >= 0:
                self._free_slots.append(sequence.slot)
        for sequence in changes.admitted:
            self._hold(sequence)
        for sequence in (*changes.children, *changes.admitted):
            # A child whose request is preempted by the plan that forks it is gone before it takes a slot.
            if not sequence.released:
                sequence.slot = self._free_slots.pop()
                if sequence not in changes.loans:
                    self._runner.admit(sequence)

    def _hold(self, sequence: Sequence) -> None:
        self._blocks.hold(sequence)
        self._sequences[sequence.seq_id] = sequence
        self._num_constrained += sequence.constraint is not None
        self._highest_seq_id = max(self._highest_seq_id, sequence.seq_id)

    def _make_batch(self, changes: StepChanges) -> RunBatch:
        batch = RunBatch.of([row for row in changes.rows if row[1]])
        if changes.scored:
            place = {
                row: i for i, row in enumerate(row for row, (_, query_len, _) in enumerate(changes.rows) if query_len)
            }
            batch.scored = [place[row] for row in changes.scored]
        self._blocks.run(changes.rows, changes.loans, batch, self._runner.admit)
        return batch

    def _describe(self, launched: LaunchedStep) -> None:
        """Writes what is known at launch into the result."""
        result = launched.result
        state = [launched.step, self.pool.num_free]
        for i, (sequence, _, _) in enumerate(launched.rows):
            if not sequence.has_run:
                sequence.has_run = True
                result.first_run_indices.append(i)
                result.num_cached_tokens.append(sequence.num_cached_tokens)
        result.next_write_block_shared.extend(self._blocks.describe(launched.rows, state))
        result.num_shared_window_blocks = self._blocks.num_shared_window_blocks
        for pool in (self.pool, self.states) if self.states.num_blocks else (self.pool,):
            added, removed = pool.take_index_changes()
            result.cache_hashes_added.extend(added)
            result.cache_hashes_removed.extend(removed)
            state += added
            state += removed
        state += self._new_tokens
        self._new_tokens.clear()
        result.free_blocks.append(self.pool.num_free)
        self._digest = hashlib.blake2b(self._digest + array("Q", state).tobytes(), digest_size=8).digest()
        result.state_digest = int.from_bytes(self._digest, "little")

    def check_consistent(self) -> None:
        """Asserts that block tables and reference counts agree, and that every slot is free or one sequence's."""
        slots = self._free_slots + [sequence.slot for sequence in self._sequences.values()]
        assert sorted(slots) == list(range(self.info.max_num_seqs)), slots
        held = (block for sequence in self._sequences.values() for block in self._blocks.held(sequence))
        self.pool.check_consistent(Counter(held))
        self._blocks.check_consistent(self._sequences)


def _groups(info: shard_pb2.ShardInfo) -> list[CacheGroup]:
    return [CacheGroup(group.window, group.num_tables, group.num_states) for group in info.cache_groups]


def _blocks(windows: tuple[int, ...], pool: BlockPool, states: BlockPool) -> SequenceBlocks:
    if states.num_blocks:
        return StatefulBlocks(pool, windows, states)
    return SequenceBlocks(pool) if windows in ((), (0,)) else GroupedBlocks(pool, windows)
