"""The shard's deterministic state machine: applies step plans to the block pool and hands batches to the runner.

Called from the step thread only. A plan is applied in this order:

  1. effects   what the samples of step k mean for the host (known tokens, stops, prefix index) takes effect when plan
               k + max_inflight is applied: by plan number, never by when a copy happened to finish, so that all ranks
               of a group stay identical
  2. forks and releases, as one permutation: children take their parents' blocks, then releases give up theirs, then
               children take slots
  3. admits    each starts from the longest prefix that the pool has cached
  4. run       blocks for the new tokens (copied first if shared), then the batch goes to the runner
  5. index     blocks that are full and known become findable

A plan that cannot be applied raises PlanRefused and ends the epoch: sequences are dropped, and since nothing is indexed
before step 5, the index never names a block whose content was not computed.
"""

import hashlib
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import grpc
from pagewire.v1 import shard_pb2

from pagewire_shard.block_hash import root_digest
from pagewire_shard.block_pool import BlockPool, OutOfBlocks
from pagewire_shard.errors import PlanRefused
from pagewire_shard.runner import PendingTokens, RunBatch, Runner, StepTokens
from pagewire_shard.sequence import Sequence

MAX_STOP_TOKENS = 64


@dataclass(slots=True, eq=False)
class PendingStep:
    """A launched step whose tokens are on their way to the host."""

    step: int
    sequences: list[Sequence]
    """The plan's run, in its order."""
    batch_rows: list[int]
    """For each of sequences, its row in the runner's batch; -1: it had stopped and did not run."""
    result: shard_pb2.StepResult
    """What is known at launch."""
    pending: PendingTokens | None = None
    """Set when the runner has launched it."""
    num_tokens: int = 0
    """Tokens it computes."""
    tokens: StepTokens | None = None
    """Set by collect."""

    def is_ready(self) -> bool:
        """The tokens are on the host."""
        return self.tokens is not None or (self.pending is not None and self.pending.is_ready())


class Engine:
    """Host state of one shard: sequences, slots, block tables, and the steps whose effects are still to come."""

    def __init__(self, info: shard_pb2.ShardInfo, runner: Runner, pool: BlockPool) -> None:
        self.info = info
        self.pool = pool
        self._runner = runner
        self._sequences: dict[int, Sequence] = {}
        self._free_slots: list[int] = []
        self._copied: list[int] = []
        """Sources of copies that nobody else holds: released after the run, so that none is handed out within it."""
        self._effects: deque[PendingStep] = deque()
        self._max_inflight = 1
        self._last_step = 0
        self._highest_seq_id = -1
        self._digest = b""
        self.end_epoch()

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """See StepEngine."""
        self._runner.watch_progress(on_progress)

    def begin_epoch(self, max_inflight: int) -> list[int]:
        """Starts a term with no sequences. Returns the free blocks of each cache group."""
        self.end_epoch()
        self._max_inflight = max_inflight
        return [self.pool.num_free]

    def end_epoch(self) -> None:
        """Drops all sequences; cached blocks stay."""
        self.pool.release(self._copied)
        self._copied.clear()
        for sequence in self._sequences.values():
            self.pool.release(sequence.blocks)
        self._sequences.clear()
        self._effects.clear()
        self._free_slots = list(range(self.info.max_num_seqs - 1, -1, -1))
        self._last_step = 0
        self._highest_seq_id = -1
        self._digest = b""
        self.pool.take_index_changes()

    def reset_cache(self) -> None:
        """Forgets all cached blocks: a step failed, so what the index promises may not have been computed."""
        self.pool.forget_all()

    def cached_hashes(self) -> list[int]:
        """The wire hashes of all cached blocks."""
        return self.pool.cached_hashes()

    def launch(self, plan: shard_pb2.StepPlan) -> PendingStep:
        """Applies a plan and starts its forward pass.

        Raises:
            PlanRefused: the plan is malformed (INVALID_ARGUMENT) or does not fit (RESOURCE_EXHAUSTED). The epoch has
                to end.
        """
        started = time.perf_counter()
        self._check(plan)
        self._last_step = plan.step
        self._apply_effects(plan.step - self._max_inflight)
        try:
            self._admit(self._fork(plan))
            self._admit([self._new_sequence(admit) for admit in plan.admits])
            batch, pending = self._prepare_run(plan)
        except OutOfBlocks:
            message = f"step {plan.step} needs more than the {self.pool.num_blocks} blocks of the pool"
            raise PlanRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, message) from None
        pending.num_tokens = sum(batch.query_lens)
        for sequence in pending.sequences:
            self._index_full_blocks(sequence)
        self._describe(pending)
        pending.result.timings.prepare_us = int((time.perf_counter() - started) * 1e6)
        pending.pending = self._runner.launch(batch)
        self._effects.append(pending)
        return pending

    def collect(self, pending: PendingStep) -> shard_pb2.StepResult:
        """Waits for a step's tokens and builds its result. Steps are collected in order."""
        assert pending.pending is not None, f"step {pending.step} was not launched"
        tokens = pending.tokens = pending.pending.wait()
        result = pending.result
        if -1 in pending.batch_rows:
            tokens = pending.tokens = _spread(tokens, pending)
        for sequence, computed, known, stop in zip(
            pending.sequences, tokens.num_computed_tokens, tokens.num_tokens, tokens.stop_reasons, strict=True
        ):
            sequence.reported_computed, sequence.reported_known, sequence.reported_stop = computed, known, stop
        result.num_computed_tokens.extend(tokens.num_computed_tokens)
        result.num_known_tokens.extend(tokens.num_tokens)
        result.num_sampled_tokens.extend([int(token >= 0) for token in tokens.sampled])
        result.sampled_token_ids.extend([token for token in tokens.sampled if token >= 0])
        result.stop_reasons.extend(tokens.stop_reasons)
        result.logprobs.extend(tokens.logprobs)
        result.timings.forward_us, result.timings.sample_us = tokens.forward_us, tokens.sample_us
        return result

    def _check(self, plan: shard_pb2.StepPlan) -> None:
        if plan.step != self._last_step + 1:
            raise _malformed(f"step {plan.step} follows step {self._last_step}; expected {self._last_step + 1}")
        if len(plan.run_token_budgets) != len(plan.run_seq_ids):
            raise _malformed(f"{len(plan.run_seq_ids)} run_seq_ids but {len(plan.run_token_budgets)} run_token_budgets")
        if any(mode == shard_pb2.RUN_MODE_SCORE for mode in plan.run_modes):
            raise _malformed("run mode SCORE is not served")
        if plan.draft_token_ids or plan.num_draft_tokens:
            raise _malformed("draft tokens are not served")
        new_ids = [fork.child_seq_id for fork in plan.forks] + [admit.seq_id for admit in plan.admits]
        if new_ids:
            if min(new_ids) <= self._highest_seq_id or len(set(new_ids)) != len(new_ids):
                raise _malformed(f"seq_ids {new_ids} are not new: {self._highest_seq_id} has been used")
            self._highest_seq_id = max(new_ids)

    def _apply_effects(self, up_to_step: int) -> None:
        while self._effects and self._effects[0].step <= up_to_step:
            pending = self._effects.popleft()
            if pending.tokens is None:
                self.collect(pending)
            tokens = pending.tokens
            assert tokens is not None
            for i, (sequence, token) in enumerate(zip(pending.sequences, tokens.sampled, strict=True)):
                if token < 0 or sequence.released:
                    continue
                sequence.token_ids.append(token)
                if tokens.stop_reasons[i]:
                    sequence.stopped = True
                    sequence.num_tokens = tokens.num_tokens[i]
                    sequence.num_computed_tokens = tokens.num_computed_tokens[i]
                    self._index_full_blocks(sequence)

    def _fork(self, plan: shard_pb2.StepPlan) -> list[Sequence]:
        children = [self._new_child(fork) for fork in plan.forks]
        for seq_id in plan.release_seq_ids:
            sequence = self._sequences.pop(seq_id, None)
            if sequence is None:
                raise _malformed(f"release of unknown seq_id {seq_id}")
            sequence.released = True
            self.pool.release(sequence.blocks)
            if sequence.slot >= 0:
                self._free_slots.append(sequence.slot)
        # A child whose request is preempted by the plan that forks it is gone before it takes a slot.
        return [child for child in children if not child.released]

    def _new_child(self, fork: shard_pb2.Fork) -> Sequence:
        parent = self._sequences.get(fork.parent_seq_id)
        if parent is None:
            raise _malformed(f"fork of unknown seq_id {fork.parent_seq_id}")
        shared = fork.num_tokens
        if shared > min(parent.num_computed_tokens, len(parent.token_ids)):
            raise _malformed(f"fork of seq_id {fork.parent_seq_id} at {shared} tokens: it has not computed as many")
        if not fork.appended_token_ids:
            raise _malformed(f"fork of seq_id {fork.parent_seq_id} appends no token")
        sampling = shard_pb2.SequenceSampling()
        sampling.CopyFrom(parent.sampling)
        sampling.seed = fork.seed
        child = Sequence(
            seq_id=fork.child_seq_id,
            slot=-1,
            token_ids=parent.token_ids[:shared] + list(fork.appended_token_ids),
            num_prompt_tokens=parent.num_prompt_tokens,
            root=parent.root,
            sampling=sampling,
            stop=parent.stop,
            blocks=parent.blocks[: -(-shared // self.pool.block_size)],
            num_computed_tokens=shared,
        )
        for block in child.blocks:
            self.pool.share(block)
        self._sequences[child.seq_id] = child
        return child

    def _new_sequence(self, admit: shard_pb2.Admit) -> Sequence:
        if not 0 < admit.num_prompt_tokens <= len(admit.token_ids):
            raise _malformed(f"seq_id {admit.seq_id}: {admit.num_prompt_tokens} of {len(admit.token_ids)} are prompt")
        if len(admit.token_ids) >= self.info.max_model_len + 1:
            raise _malformed(f"seq_id {admit.seq_id}: {len(admit.token_ids)} tokens exceed {self.info.max_model_len}")
        if len(admit.stop.token_ids) > MAX_STOP_TOKENS:
            raise _malformed(f"seq_id {admit.seq_id}: more than {MAX_STOP_TOKENS} stop tokens")
        if admit.adapter or admit.grammar:
            raise _malformed(f"seq_id {admit.seq_id}: adapters and grammars are not served")
        sequence = Sequence(
            seq_id=admit.seq_id,
            slot=-1,
            token_ids=list(admit.token_ids),
            num_prompt_tokens=admit.num_prompt_tokens,
            root=root_digest(admit.cache_salt, admit.adapter),
            sampling=admit.sampling,
            stop=admit.stop,
        )
        self._sequences[sequence.seq_id] = sequence
        self._attach_cached_prefix(sequence, admit.min_recompute_from)
        return sequence

    def _attach_cached_prefix(self, sequence: Sequence, min_recompute_from: int) -> None:
        # The last known token is always computed: its logits are what the first sample needs.
        limit = len(sequence.token_ids) - 1
        if min_recompute_from:
            limit = min(limit, min_recompute_from)
        for i in range(limit // self.pool.block_size):
            block = self.pool.lookup(sequence.digest_of(i, self.pool.block_size))
            if block is None:
                break
            self.pool.share(block)
            sequence.blocks.append(block)
        sequence.num_indexed_blocks = len(sequence.blocks)
        sequence.num_computed_tokens = sequence.num_cached_tokens = len(sequence.blocks) * self.pool.block_size

    def _admit(self, sequences: Items[Sequence]) -> None:
        if len(sequences) > len(self._free_slots):
            message = f"{len(self._sequences)} sequences exceed max_num_seqs {self.info.max_num_seqs}"
            raise PlanRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        for sequence in sequences:
            sequence.slot = self._free_slots.pop()
            sequence.num_tokens = sequence.reported_known = len(sequence.token_ids)
            sequence.reported_computed = sequence.num_computed_tokens
            self._runner.admit(sequence)

    def _prepare_run(self, plan: shard_pb2.StepPlan) -> tuple[RunBatch, PendingStep]:
        batch = RunBatch()
        pending = PendingStep(plan.step, [], [], shard_pb2.StepResult(step=plan.step))
        for seq_id, budget in zip(plan.run_seq_ids, plan.run_token_budgets, strict=True):
            sequence = self._sequences.get(seq_id)
            if sequence is None:
                raise _malformed(f"run of unknown seq_id {seq_id}")
            num_new = 0 if sequence.stopped else min(budget, sequence.num_tokens - sequence.num_computed_tokens)
            if num_new and sequence.num_tokens >= self._max_len(sequence):
                num_new = 0  # A step in flight samples its last token.
            pending.sequences.append(sequence)
            pending.batch_rows.append(len(batch.sequences) if num_new else -1)
            if num_new:
                self._extend(sequence, num_new, batch)
        self.pool.release(self._copied)
        self._copied.clear()
        return batch, pending

    def _max_len(self, sequence: Sequence) -> int:
        return min(sequence.num_prompt_tokens + sequence.stop.max_tokens, self.info.max_model_len)

    def _extend(self, sequence: Sequence, num_new: int, batch: RunBatch) -> None:
        """Gives a sequence blocks for its next num_new tokens and adds it to the batch."""
        block_size = self.pool.block_size
        start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + num_new
        blocks = sequence.blocks
        i = start // block_size
        if i < len(blocks) and not self.pool.is_writable(blocks[i]):
            copy = self.pool.allocate()
            batch.copies.append((blocks[i], copy))
            batch.table_updates.append((sequence.slot, i, copy))
            if self.pool.is_shared(blocks[i]):
                self.pool.release([blocks[i]])
            else:
                self._copied.append(blocks[i])
            blocks[i] = copy
        while len(blocks) * block_size < end:
            block = self.pool.allocate()
            batch.table_updates.append((sequence.slot, len(blocks), block))
            blocks.append(block)
        sequence.num_computed_tokens = end
        samples = end == sequence.num_tokens
        if samples:
            sequence.num_tokens += 1
        batch.add(sequence, num_new, samples)

    def _index_full_blocks(self, sequence: Sequence) -> None:
        block_size = self.pool.block_size
        num_full = min(len(sequence.token_ids), sequence.num_computed_tokens) // block_size
        while sequence.num_indexed_blocks < num_full:
            i = sequence.num_indexed_blocks
            self.pool.index(sequence.blocks[i], sequence.digest_of(i, block_size))
            sequence.num_indexed_blocks = i + 1

    def _describe(self, pending: PendingStep) -> None:
        """Writes what is known at launch into the result."""
        result = pending.result
        block_size, is_writable = self.pool.block_size, self.pool.is_writable
        state = array("Q", (pending.step, self.pool.num_free))
        for i, sequence in enumerate(pending.sequences):
            end = sequence.num_computed_tokens
            last = end // block_size
            shared = last < len(sequence.blocks) and not is_writable(sequence.blocks[last])
            result.next_write_block_shared.append(shared)
            if not sequence.has_run:
                sequence.has_run = True
                result.first_run_indices.append(i)
                result.num_cached_tokens.append(sequence.num_cached_tokens)
            state.extend((sequence.seq_id, end, sequence.blocks[-1] if sequence.blocks else 0))
        added, removed = self.pool.take_index_changes()
        result.cache_hashes_added.extend(added)
        result.cache_hashes_removed.extend(removed)
        state.extend(added)
        state.extend(removed)
        result.free_blocks.append(self.pool.num_free)
        self._digest = hashlib.blake2b(self._digest + state.tobytes(), digest_size=8).digest()
        result.state_digest = int.from_bytes(self._digest, "little")

    def check_consistent(self) -> None:
        """Asserts that block tables and reference counts agree, and that every slot is free or one sequence's."""
        slots = self._free_slots + [sequence.slot for sequence in self._sequences.values()]
        assert sorted(slots) == list(range(self.info.max_num_seqs)), slots
        held: Iterable[int] = (block for sequence in self._sequences.values() for block in sequence.blocks)
        self.pool.check_consistent(Counter(held))


def _spread(tokens: StepTokens, pending: PendingStep) -> StepTokens:
    """Gives sequences that did not run their entries: nothing sampled, counts as last reported."""
    rows = pending.batch_rows
    sequences = pending.sequences
    run_index = {row: i for i, row in enumerate(rows) if row >= 0}
    for logprobs in tokens.logprobs:
        logprobs.run_index = run_index[logprobs.run_index]
    return StepTokens(
        num_computed_tokens=[
            tokens.num_computed_tokens[r] if r >= 0 else s.reported_computed
            for r, s in zip(rows, sequences, strict=True)
        ],
        num_tokens=[tokens.num_tokens[r] if r >= 0 else s.reported_known for r, s in zip(rows, sequences, strict=True)],
        sampled=[tokens.sampled[r] if r >= 0 else -1 for r in rows],
        stop_reasons=[
            tokens.stop_reasons[r] if r >= 0 else s.reported_stop for r, s in zip(rows, sequences, strict=True)
        ],
        logprobs=tokens.logprobs,
        forward_us=tokens.forward_us,
        sample_us=tokens.sample_us,
    )


def _malformed(message: str) -> PlanRefused:
    return PlanRefused(grpc.StatusCode.INVALID_ARGUMENT, message)
