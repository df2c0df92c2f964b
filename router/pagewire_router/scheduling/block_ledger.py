"""How many blocks of a shard group's pool can still be promised.

The pool is the shard's. The router knows how many blocks were free after the last result, and bounds what the plans in
flight can take:

    available = free - sum over sequences of (pledge - held)

where `held` are the blocks a sequence held in the last result and `pledge` bounds what it holds once all plans in
flight are done. A sequence that left (finished, preempted) counts until the last result that ran it is back, since its
lane may still have taken a block; what its release gives back counts only when the result of that release is back.
"""

from pagewire_router.scheduling.sequence import Sequence, SequenceGroup


class BlockLedger:
    """Free blocks and outstanding pledges."""

    def __init__(self, block_size: int, free: int) -> None:
        self.block_size = block_size
        self.free = free
        """Free blocks as of the last result."""
        self._outstanding = 0

    @property
    def available(self) -> int:
        """Blocks that can be pledged."""
        return self.free - self._outstanding

    def blocks(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def set(self, sequence: Sequence, *, pledge: int, held: int) -> None:
        """Replaces what a sequence counts for."""
        pledge = max(pledge, held)
        self._outstanding += (pledge - held) - (sequence.pledge - sequence.held)
        sequence.pledge, sequence.held = pledge, held

    def bound(self, sequence: Sequence) -> int:
        """The most blocks a sequence has after all plans in flight."""
        tokens = max(sequence.computed, sequence.prefill_target)
        return self.blocks(tokens) + (1 if sequence.maybe_shared else 0)

    def can_take(self, sequence: Sequence, budget: int) -> bool:
        """Whether the blocks suffice for this many more tokens of a sequence."""
        computed = max(min(sequence.computed + budget, sequence.known), sequence.prefill_target)
        extra = self.blocks(computed) + sequence.maybe_shared - sequence.pledge
        return extra <= 0 or extra <= self.available

    def needed_by(self, group: SequenceGroup) -> int:
        """Blocks that a group takes with its first tokens after admission."""
        alive = group.alive()
        needed = sum(self.blocks(len(sequence.token_ids) + 1) for sequence in alive)
        if len(alive) > 1:
            needed -= (len(alive) - 1) * (group.common_length() // self.block_size)
        return needed

    def rebase(self, sequence: Sequence, computed: int) -> None:
        """Takes over from a result how many tokens a running sequence has computed."""
        self.set(sequence, pledge=self.bound(sequence), held=self.blocks(computed))

    def forget(self, sequence: Sequence) -> None:
        """A sequence counts no more."""
        self.set(sequence, pledge=0, held=0)
