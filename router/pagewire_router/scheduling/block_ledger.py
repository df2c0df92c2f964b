"""How many blocks of a shard group's pool can still be promised.

The pool is the shard's. The router knows how many blocks were free after the last result, and bounds what the plans in
flight can take:

    available = free - sum over sequences of (num_reserved_blocks - num_held_blocks)

A sequence holds num_held_blocks as of the last result, and at most num_reserved_blocks once all plans in flight are
done: fewer than it holds if drafts were rejected, whose blocks the shard gives back when it applies the next plan. One
that left (finished, preempted) counts until the last result that ran it is back, since that run may still have taken a
block; what its release gives back counts only when the result of that release is back.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pagewire.v1 import shard_pb2

from pagewire_router.errors import FieldViolation, RequestTooLong
from pagewire_router.request import Request
from pagewire_router.scheduling.sequence import Sequence


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


def num_blocks_of_group(lengths: Iterable[int], num_shared_tokens: int, block_size: int) -> int:
    """Blocks that sequences of these lengths take which share their leading tokens."""
    num_blocks = [num_blocks_for(length, block_size) for length in lengths]
    return sum(num_blocks) - (len(num_blocks) - 1) * (num_shared_tokens // block_size)


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """Limits of a shard group."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    """Tokens one plan may compute."""
    max_model_len: int

    @staticmethod
    def of(info: shard_pb2.ShardInfo) -> "GroupLimits":
        """Returns the limits from a shard's description."""
        return GroupLimits(
            num_blocks=info.num_blocks[0],
            block_size=info.block_size,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_model_len=info.max_model_len,
        )

    def num_fitting(self, request: Request) -> int:
        """How many sequences of the request could run at once if it were alone; at least 1, though that may not fit."""
        num_prompt = len(request.prompt_token_ids)
        max_len = min(num_prompt + request.params.max_tokens, self.max_model_len)
        num_shared = (num_prompt - 1) // self.block_size
        num_own = num_blocks_for(max_len, self.block_size) - num_shared
        return max(1, min(self.max_num_seqs, (self.num_blocks - num_shared) // num_own))

    def check_fits(self, request: Request) -> None:
        """Raises RequestTooLong if the request could not run even if it were alone."""
        num_prompt, n = len(request.prompt_token_ids), request.num_sequences
        max_len = min(num_prompt + request.params.max_tokens, self.max_model_len)
        # Beams share the whole prompt, since they are forked when it has been computed.
        num_shared = num_prompt if request.beams is not None else num_prompt - 1
        needed = num_blocks_of_group([max_len] * n, num_shared, self.block_size)
        if needed > self.num_blocks:
            description = (
                f"{num_prompt} prompt tokens and {request.params.max_tokens} max_tokens in {n} sequences take {needed} "
                f"blocks of {self.block_size} tokens; the KV cache has {self.num_blocks}"
            )
            raise RequestTooLong([FieldViolation("max_tokens", description)])
        if n > self.max_num_seqs:
            name = "n" if request.beams is None else "beam_width"
            raise RequestTooLong([FieldViolation(name, f"{n} sequences; the server runs {self.max_num_seqs}")])


class BlockLedger:
    """Free blocks, and what is reserved of them beyond what sequences held in the last result."""

    def __init__(self, block_size: int, free: int) -> None:
        self.block_size = block_size
        self.free = free
        """Free blocks as of the last result."""
        self._num_outstanding = 0

    @property
    def available(self) -> int:
        """Blocks that can be reserved."""
        return self.free - self._num_outstanding

    def bound(self, sequence: Sequence, num_computed_tokens: int) -> int:
        """The most blocks a sequence holds once it has computed so many tokens. The only place that says so.

        num_computed_tokens counts all draft tokens as accepted, and may go beyond max_len with them.
        """
        num_tokens = max(sequence.num_admitted_tokens, min(num_computed_tokens, sequence.max_len))
        return num_blocks_for(num_tokens, self.block_size) + sequence.next_write_block_shared

    def num_missing(self, sequence: Sequence, num_computed_tokens: int) -> int:
        """Blocks to reserve before a plan may let the sequence compute so many tokens in all."""
        num_blocks = self.bound(sequence, num_computed_tokens) - sequence.num_reserved_blocks
        return num_blocks if num_blocks > 0 else 0

    def reserve(self, sequence: Sequence, num_more: int) -> None:
        """Reserves further blocks for a sequence."""
        self._num_outstanding += num_more
        sequence.num_reserved_blocks += num_more
        sequence.num_reserved_tokens += num_more * self.block_size

    def rebase(self, sequence: Sequence, num_computed_tokens: int | None = None) -> None:
        """Reserves what the sequence may need from now on, and no more.

        num_computed_tokens: the tokens for which the shard held blocks as of the last result, if that says so.
        """
        num_held = sequence.num_held_blocks
        if num_computed_tokens is not None:
            num_held = num_blocks_for(num_computed_tokens, self.block_size)
        self.set(sequence, num_reserved=self.bound(sequence, sequence.num_computed_tokens), num_held=num_held)

    def forget(self, sequence: Sequence) -> None:
        """The sequence counts no more."""
        self.set(sequence, num_reserved=0, num_held=0)

    def set(self, sequence: Sequence, *, num_reserved: int, num_held: int) -> None:
        """Replaces what the sequence counts for."""
        self._num_outstanding += num_reserved - num_held
        self._num_outstanding -= sequence.num_reserved_blocks - sequence.num_held_blocks
        sequence.num_reserved_blocks, sequence.num_held_blocks = num_reserved, num_held
        sequence.num_reserved_tokens = (num_reserved - sequence.next_write_block_shared) * self.block_size
        sequence.num_held_tokens = num_held * self.block_size
