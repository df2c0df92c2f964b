"""How many blocks of a shard group's pool can still be promised.

The pool is the shard's. The router knows how many blocks were free after the last result, and bounds what the plans in
flight can take:

    available = free - sum over sequences of (num_reserved_blocks - num_held_blocks)

A sequence holds num_held_blocks as of the last result, and at most num_reserved_blocks once all plans in flight are
done: fewer than it holds if drafts were rejected, whose blocks the shard gives back when it applies the next plan. One
that left (finished, preempted) counts until the last result that ran it is back, since that run may still have taken a
block; what its release gives back counts only when the result of that release is back.

In a model with several cache groups (pagewire_common/cache_groups.py) a block of tokens counts once for each block
table. In tables with a window a sequence gives blocks back while it runs. What it gives back others may still hold: so
each sequence counts there for all blocks that it holds, as if none were shared, and `free` for as many less as the
shard says are counted more than once. A fork counts as sharing nothing there until its result is back.

States of recurrent layers are no blocks and are not counted: a shard has as many as max_num_seqs sequences can need.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pagewire.v1 import shard_pb2
from pagewire_common.cache_groups import PLAIN, CacheGroup, CacheGroups

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
    groups: tuple[CacheGroup, ...] = PLAIN
    longest_short: int = 0
    """As ShardInfo has it."""
    num_stages: int = 1
    """Stages of the pipeline that the shards are."""

    @staticmethod
    def of(info: shard_pb2.ShardInfo) -> "GroupLimits":
        """Returns the limits from a shard's description."""
        return GroupLimits(
            num_blocks=info.num_blocks[0],
            block_size=info.block_size,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_model_len=info.max_model_len,
            groups=tuple(CacheGroup(g.window, g.num_tables, g.num_states) for g in info.cache_groups) or PLAIN,
            longest_short=info.longest_short,
            num_stages=max(1, info.pp_size),
        )

    def cache_groups(self) -> CacheGroups:
        """The arithmetic of the cache groups."""
        return CacheGroups(self.block_size, self.max_num_batched_tokens, self.groups)

    def num_fitting(self, request: Request) -> int:
        """How many sequences of the request could run at once if it were alone; at least 1, though that may not fit."""
        num_prompt = len(request.prompt_token_ids)
        max_len = min(num_prompt + request.params.max_tokens, self.max_model_len)
        num_shared = (num_prompt - 1) // self.block_size
        num_own = num_blocks_for(max_len, self.block_size) - num_shared
        if self.groups != PLAIN:
            groups = self.cache_groups()
            num_shared *= groups.num_full_tables
            num_own *= groups.num_full_tables
            num_own += groups.chunked_window_blocks(max_len, fork_from=num_prompt - 1) + groups.num_window_tables
        return max(1, min(self.max_num_seqs, (self.num_blocks - num_shared) // num_own))

    def num_blocks_alone(self, request: Request) -> int:
        """Blocks that suffice for a request that has the pool to itself."""
        num_prompt, n = len(request.prompt_token_ids), request.num_sequences
        max_len = min(num_prompt + request.params.max_tokens, self.max_model_len)
        # Beams share the whole prompt, since they are forked when it has been computed.
        num_shared = num_prompt if request.beams is not None else num_prompt - 1
        num_blocks = num_blocks_of_group([max_len] * n, num_shared, self.block_size)
        if self.groups == PLAIN:
            return num_blocks
        groups = self.cache_groups()
        num_blocks *= groups.num_full_tables
        if n == 1 and request.beams is None:
            return num_blocks + groups.chunked_window_blocks(max_len)
        num_blocks += groups.chunked_window_blocks(max_len, fork_from=num_prompt - 1) + groups.num_window_tables
        # Beams of a step stand beside those that they are forked from.
        num_others = n - 1 if request.beams is None else 2 * n - 1
        return num_blocks + num_others * self._child_window_blocks(max_len, num_prompt - 1)

    def check_fits(self, request: Request) -> None:
        """Raises RequestTooLong if the request could not run even if it were alone."""
        num_prompt, n = len(request.prompt_token_ids), request.num_sequences
        needed = self.num_blocks_alone(request)
        if needed > self.num_blocks:
            description = (
                f"{num_prompt} prompt tokens and {request.params.max_tokens} max_tokens in {n} sequences take {needed} "
                f"blocks of {self.block_size} tokens; the KV cache has {self.num_blocks}"
            )
            raise RequestTooLong([FieldViolation("max_tokens", description)])
        if n > self.max_num_seqs:
            name = "n" if request.beams is None else "beam_width"
            raise RequestTooLong([FieldViolation(name, f"{n} sequences; the server runs {self.max_num_seqs}")])

    def _child_window_blocks(self, max_len: int, num_shared: int) -> int:
        """Blocks that a forked sequence takes at most in tables with a window."""
        groups = self.cache_groups()
        return groups.chunked_window_blocks(max_len, num_shared) + groups.num_window_tables


class BlockLedger:
    """Free blocks, and what is reserved of them beyond what sequences held in the last result."""

    def __init__(self, block_size: int, free: int, groups: CacheGroups | None = None) -> None:
        """groups: None: one, which keeps all tokens in one table."""
        self.block_size = block_size
        self.free = free
        """Free blocks as of the last result."""
        self._num_outstanding = 0
        self._groups = groups if groups is not None and (groups.windows or groups.num_tables > 1) else None
        self._num_shared_window_blocks = 0

    @property
    def num_full_tables(self) -> int:
        """Blocks that a block of tokens takes in tables that keep all tokens."""
        return 1 if self._groups is None else self._groups.num_full_tables

    @property
    def has_windows(self) -> bool:
        """Whether there are tables with a window."""
        return self._groups is not None and bool(self._groups.windows)

    @property
    def max_drafts_in_windows(self) -> int:
        """Most draft tokens of a sequence that may be unverified at a time in a model with windows: with more of them
        it might not go on with the blocks that it has alone."""
        assert self._groups is not None
        return self._groups.max_chunk - 1

    @property
    def available(self) -> int:
        """Blocks that can be reserved."""
        return self.free - self._num_outstanding

    def bound(self, sequence: Sequence, num_computed_tokens: int) -> int:
        """The most blocks a sequence holds once it has computed so many tokens. The only place that says so.

        num_computed_tokens counts all draft tokens as accepted, and may go beyond max_len with them.
        """
        num_tokens = max(sequence.num_admitted_tokens, min(num_computed_tokens, sequence.max_len))
        num_blocks = num_blocks_for(num_tokens, self.block_size)
        groups = self._groups
        if groups is None:
            return num_blocks + sequence.next_write_block_shared
        num_blocks = num_blocks * groups.num_full_tables + sequence.next_write_block_shared * groups.num_tables
        if not groups.windows:
            return num_blocks
        num_certain = sequence.num_computed_tokens - sequence.num_unverified_tokens
        num_window_blocks = groups.most_window_blocks(
            num_tokens, max(1, num_computed_tokens - num_certain, num_tokens - (sequence.fork_from or num_tokens))
        )
        if sequence.num_reported_computed_tokens < sequence.num_admitted_tokens:
            shared, fork_from = sequence.num_forked_tokens, sequence.fork_from
            num_window_blocks = max(num_window_blocks, groups.chunked_window_blocks(num_tokens, shared, fork_from))
        return num_blocks + num_window_blocks

    def num_missing(self, sequence: Sequence, num_computed_tokens: int) -> int:
        """Blocks to reserve before a plan may let the sequence compute so many tokens in all."""
        num_blocks = self.bound(sequence, num_computed_tokens) - sequence.num_reserved_blocks
        return num_blocks if num_blocks > 0 else 0

    def reserve(self, sequence: Sequence, num_more: int, num_computed_tokens: int) -> None:
        """Reserves further blocks for a sequence, as many as num_missing says for so many tokens."""
        self._num_outstanding += num_more
        sequence.num_reserved_blocks += num_more
        if self._groups is None:
            sequence.num_reserved_tokens += num_more * self.block_size
        else:
            num_tokens = max(sequence.num_admitted_tokens, min(num_computed_tokens, sequence.max_len))
            sequence.num_reserved_tokens = num_blocks_for(num_tokens, self.block_size) * self.block_size

    def rebase(
        self, sequence: Sequence, num_computed_tokens: int | None = None, num_certain_tokens: int | None = None
    ) -> None:
        """Reserves what the sequence may need from now on, and no more.

        Args:
            num_computed_tokens: The tokens for which the shard held blocks as of the last result, if that says so.
            num_certain_tokens: Those of them that were certain; None: all.
        """
        num_held = sequence.num_held_blocks
        if num_computed_tokens is not None:
            num_held = num_blocks_for(num_computed_tokens, self.block_size)
            if self._groups is not None:
                num_certain = num_computed_tokens if num_certain_tokens is None else num_certain_tokens
                num_held = self._held(sequence, num_computed_tokens, num_certain)
        self.set(sequence, num_reserved=self.bound(sequence, sequence.num_computed_tokens), num_held=num_held)

    def _held(self, sequence: Sequence, num_tokens: int, num_certain: int) -> int:
        """Blocks that a sequence holds in all tables, and up to which length it holds as many."""
        groups, block_size = self._groups, self.block_size
        assert groups is not None
        if sequence.fork_from:
            num_certain = min(num_certain, sequence.fork_from)
        num_blocks = num_blocks_for(num_tokens, block_size)
        sequence.num_held_window_blocks = groups.window_blocks(num_tokens, num_certain)
        sequence.num_held_tokens = min(num_blocks * block_size, groups.num_tokens_until_slide(num_certain) - 1)
        return groups.num_full_tables * num_blocks + sequence.num_held_window_blocks

    def enter_fork(self, child: Sequence, num_shared: int) -> None:
        """Reserves for a child what it needs beside what it shares with its parent, as the next plan forks it."""
        if self._groups is None:
            self.rebase(child, num_shared)
            return
        num_held = self._groups.num_full_tables * num_blocks_for(num_shared, self.block_size)
        self.set(child, num_reserved=self.bound(child, child.num_computed_tokens), num_held=num_held)
        child.num_held_tokens = child.num_held_window_blocks = 0

    def num_blocks_to_fork(self, num_tokens: int, num_shared: int) -> int:
        """Blocks to reserve for a child of so many tokens that shares the first num_shared of them."""
        num_own = num_blocks_for(num_tokens, self.block_size) - num_shared // self.block_size
        if self._groups is None:
            return num_own
        return num_own * self._groups.num_full_tables + self.num_window_blocks_to_fork(num_tokens, num_shared)

    def num_window_blocks_to_fork(self, num_tokens: int, num_shared: int) -> int:
        """As num_blocks_to_fork, in tables with a window: they count as if the child shared nothing."""
        groups = self._groups
        if groups is None or not groups.windows:
            return 0
        return groups.chunked_window_blocks(num_tokens, num_shared) + groups.num_window_tables

    def num_blocks_to_admit(self, lengths: list[int], num_shared: int) -> int:
        """Blocks to reserve for a request whose sequences have these lengths and share the first num_shared tokens."""
        num_blocks = num_blocks_of_group(lengths, num_shared, self.block_size)
        groups = self._groups
        if groups is None:
            return num_blocks
        num_blocks *= groups.num_full_tables
        if not groups.windows:
            return num_blocks
        others = sorted(lengths)
        fork_from = num_shared if len(lengths) > 1 else 0
        num_blocks += groups.chunked_window_blocks(others.pop(), fork_from=fork_from)
        return num_blocks + sum(self.num_window_blocks_to_fork(length, num_shared) for length in others)

    def loosen(self, sequence: Sequence) -> None:
        """Results do not tell any more what the sequence holds, which it may give back in part: the least counts."""
        if self._groups is not None and self._groups.windows:
            least = self._groups.least_window_blocks(sequence.num_reported_computed_tokens)
            if (num_less := sequence.num_held_window_blocks - least) > 0:
                self._num_outstanding += num_less
                sequence.num_held_blocks -= num_less
                sequence.num_held_window_blocks = least

    def take_result(self, free: int, num_shared_window_blocks: int) -> None:
        """Takes in what a result says of the whole pool."""
        self.free = free
        if num_shared_window_blocks != self._num_shared_window_blocks:
            self._num_outstanding += num_shared_window_blocks - self._num_shared_window_blocks
            self._num_shared_window_blocks = num_shared_window_blocks

    def forget(self, sequence: Sequence) -> None:
        """The sequence counts no more."""
        self.set(sequence, num_reserved=0, num_held=0)

    def set(self, sequence: Sequence, *, num_reserved: int, num_held: int) -> None:
        """Replaces what the sequence counts for."""
        self._num_outstanding += num_reserved - num_held
        self._num_outstanding -= sequence.num_reserved_blocks - sequence.num_held_blocks
        sequence.num_reserved_blocks, sequence.num_held_blocks = num_reserved, num_held
        if self._groups is None:
            sequence.num_reserved_tokens = (num_reserved - sequence.next_write_block_shared) * self.block_size
            sequence.num_held_tokens = num_held * self.block_size
            return
        num_tokens = max(sequence.num_admitted_tokens, min(sequence.num_computed_tokens, sequence.max_len))
        sequence.num_reserved_tokens = num_blocks_for(num_tokens, self.block_size) * self.block_size
        if not num_held:
            sequence.num_held_tokens = sequence.num_held_window_blocks = 0
