"""The blocks and states of sequences in a model that has layers with recurrent state.

A sequence has one state slot for all of these layers, from a pool of their own, in which slots are held, cached and
evicted as blocks are. A step reads the slot and writes the state behind the step's tokens to it, if nobody else can
read it, otherwise to a new one. So a fork or a hit in the prefix cache names a slot and copies nothing.

A slot whose state lies behind a full block is a checkpoint, if the sequence was admitted with that as one of its
`checkpoints`: it is in the prefix index by the hash of that block, and the sequence's next step writes elsewhere. What
will be forked from a sequence is kept by a second slot, until it is.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items

from pagewire.v1 import shard_pb2
from pagewire_common.block_hash import Digest, table_digest
from pagewire_common.cache_groups import chunk_len

from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.grouped_blocks import GroupedBlocks
from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.engine.stateful_prefixes import StatefulPrefixes
from pagewire_shard.engine.step_changes import Row, StepChanges, num_blocks_held_anew
from pagewire_shard.engine.step_prefixes import Loan


class StatefulBlocks(GroupedBlocks):
    """GroupedBlocks with a state of each sequence."""

    def __init__(self, pool: BlockPool, windows: Items[int], states: BlockPool) -> None:
        """states: The pool of state slots."""
        super().__init__(pool, windows)
        self._states = states
        self._num_tables = len(windows)
        self._left: list[int] = []
        """Slots that rows read and do not write: released after the run, so that none is written within it."""

    def prefixes(self) -> StatefulPrefixes:
        """See SequenceBlocks."""
        return StatefulPrefixes(self._pool, self._windows, self._states)

    def chunk_len(self, sequence: Sequence, budget: int) -> int:
        """See SequenceBlocks."""
        return chunk_len(sequence.num_computed_tokens, budget, sequence.chunk_ends)

    def fork(self, parent: Sequence, fork: shard_pb2.Fork) -> Sequence | None:
        """See SequenceBlocks."""
        if fork.num_tokens == parent.num_computed_tokens and not parent.stopped:
            slot = parent.state_slot
        elif fork.num_tokens == parent.fork_from:
            slot = parent.fork_slot
        else:
            return None
        child = super().fork(parent, fork)
        if child is not None:
            child.state_slot = slot
        return child

    def fits(self, changes: StepChanges) -> bool:
        """See SequenceBlocks."""
        num_free = self._states.num_free
        num_at_most = len(changes.rows) + len(changes.admitted)  # A hit takes a slot, and its row writes to another.
        return super().fits(changes) and (num_at_most <= num_free or self._num_states(changes) <= num_free)

    def _num_states(self, changes: StepChanges) -> int:
        """Free slots that a plan needs, if every row writes to a new one."""
        added: defaultdict[int, int] = defaultdict(int)
        for sequences, num in (((*changes.children, *changes.admitted), 1), (changes.released, -1)):
            for sequence in sequences:
                for slot in _slots(sequence):
                    added[slot] += num
        return num_blocks_held_anew(added, self._states) + sum(query_len > 0 for _, query_len, _ in changes.rows)

    def hold(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        super().hold(sequence)
        if sequence.fork_from and sequence.fork_from == sequence.num_computed_tokens:
            sequence.fork_slot = sequence.state_slot
        self._states.share(list(_slots(sequence)))

    def release(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        super().release(sequence)
        self._states.release(list(_slots(sequence)))
        sequence.state_slot = sequence.fork_slot = -1  # The plan that releases it may fork it too.

    def end_epoch(self) -> None:
        """See SequenceBlocks."""
        super().end_epoch()
        self._states.release(self._left)
        self._left.clear()

    def run(
        self, rows: list[Row], loans: Mapping[Sequence, Loan], batch: RunBatch, admit: Callable[[Sequence], None]
    ) -> None:
        """See SequenceBlocks."""
        super().run(rows, loans, batch, admit)
        for sequence, query_len, _ in rows:
            if query_len:
                self._move_on(sequence, query_len, batch)
        self._states.release(self._left)
        self._left.clear()

    def _move_on(self, sequence: Sequence, query_len: int, batch: RunBatch) -> None:
        """Chooses where a row of the batch reads its state and where it writes it."""
        slot, states = sequence.state_slot, self._states
        is_new = sequence.num_computed_tokens == query_len
        assert is_new == (slot < 0), f"seq_id {sequence.seq_id}: its tokens and its state do not begin together"
        batch.read_slots.append(slot)
        if is_new or not states.is_writable(slot):
            sequence.state_slot = states.allocate()
            if not is_new:
                self._left.append(slot)
        batch.write_slots.append(sequence.state_slot)

    def after_run(self, changes: StepChanges) -> None:
        """See SequenceBlocks."""
        for parent in self._parents:
            if parent.fork_slot >= 0:
                self._states.release([parent.fork_slot])
                parent.fork_slot = -1
        for sequence, query_len, _ in changes.rows:
            if query_len and sequence.chunk_ends:
                self._keep(sequence)
        super().after_run(changes)

    def _keep(self, sequence: Sequence) -> None:
        """Keeps the state behind a chunk for those who will need it."""
        num_tokens, slot = sequence.num_computed_tokens, sequence.state_slot
        if num_tokens in sequence.checkpoints:
            num_blocks = num_tokens // self._block_size
            digest = sequence.digests_of(num_blocks, self._block_size)[num_blocks - 1]
            self._states.index(slot, self._name(digest))
        if num_tokens == sequence.fork_from:
            sequence.fork_slot = slot
            self._states.share([slot])

    def _name(self, digest: Digest) -> Digest:
        """What the checkpoint behind a block is found by."""
        return table_digest(digest, self._num_tables)

    def settle(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        raise AssertionError("a shard with states verifies no drafts: the state behind a rejected one cannot be undone")

    def forget(self, sequence: Sequence) -> None:
        """See SequenceBlocks."""
        super().forget(sequence)
        found = [self._states.lookup(self._name(digest)) for digest in sequence.digests]
        self._states.forget([slot for slot in found if slot is not None])

    def describe(self, rows: list[Row], state: list[int]) -> list[bool]:
        """See SequenceBlocks."""
        state.append(self._states.num_free)
        state += [sequence.state_slot + 1 for sequence, _, _ in rows]
        return super().describe(rows, state)

    def check_consistent(self, sequences: Mapping[int, Sequence]) -> None:
        """See SequenceBlocks."""
        super().check_consistent(sequences)
        self._states.check_consistent(Counter(slot for sequence in sequences.values() for slot in _slots(sequence)))


def _slots(sequence: Sequence) -> Iterator[int]:
    """The state slots that a sequence holds, or names and does not hold yet."""
    if sequence.state_slot >= 0:
        yield sequence.state_slot
    if sequence.fork_slot >= 0:
        yield sequence.fork_slot
