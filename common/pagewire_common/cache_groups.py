"""How many blocks of the pool a sequence takes in the cache groups of a model: what router and shards count by.

A cache group is the layers whose cache has one shape and one lifetime. All groups draw equally large blocks from one
pool. A group has one block table or more, each for as many of its layers as a block has room for; a block of tokens
takes a block of the pool in each of them. A group without a window keeps all tokens of a sequence. One with a window
keeps the last `window` tokens that are computed and certain, and whatever lies behind them: the next token attends to
fewer, and a child may be forked one token back.

A group with recurrent state has no blocks. A sequence's state is one slot of a pool of its own, which always suffices:
each sequence may read one slot and write another in a step, and there are as many (docs/architecture.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose cache has one shape and one lifetime."""

    window: int = 0
    """Tokens that are kept; 0: all."""
    num_tables: int = 1
    """Blocks of the pool that a block of tokens takes."""
    num_states: int = 0
    """Slots of recurrent state; 0: the group has none, but blocks."""


STATES_PER_SEQUENCE = 2
"""State slots that there are for each sequence, at least: it reads one and writes another."""
MIN_CHUNK = 512
"""Tokens of a sequence that a plan may compute at once however short the windows are."""
PLAIN = (CacheGroup(),)
"""The groups of a model of which all layers attend to all tokens."""


def first_kept_block(num_tokens: int, window: int, block_size: int) -> int:
    """The first block that a group with a window keeps of a sequence with so many computed and certain tokens."""
    return (num_tokens - window) // block_size if num_tokens > window else 0


def table_windows(groups: Iterable[CacheGroup]) -> tuple[int, ...]:
    """The window of each block table, in the order of the groups."""
    return tuple(group.window for group in groups for _ in range(group.num_tables))


def num_states_of(groups: Iterable[CacheGroup]) -> int:
    """State slots of a model's groups; 0: it has no recurrent state."""
    return sum(group.num_states for group in groups)


def chunk_len(num_computed: int, num_new: int, ends: Iterable[int]) -> int:
    """How many of its next num_new tokens a run computes of a sequence whose chunks end at `ends`, ascending."""
    return next((min(num_new, end - num_computed) for end in ends if end > num_computed), num_new)


class CacheGroups:
    """The arithmetic of a model's cache groups."""

    def __init__(self, block_size: int, max_num_batched_tokens: int, groups: tuple[CacheGroup, ...] = PLAIN) -> None:
        self.block_size = block_size
        self.windows = tuple(group for group in groups if group.window)
        """The groups that have a window."""
        self.num_full_tables = sum(group.num_tables for group in groups if not group.window)
        """Tables that keep all tokens."""
        self.num_window_tables = sum(group.num_tables for group in self.windows)
        self.num_tables = self.num_full_tables + self.num_window_tables
        longest = max((group.window for group in self.windows), default=max_num_batched_tokens)
        self.has_states = num_states_of(groups) > 0
        """Whether there are layers with recurrent state."""
        self.max_chunk = min(max_num_batched_tokens, max(2 * longest, MIN_CHUNK))
        """Most tokens of one sequence that a plan computes. Tables with a window take blocks for all of them."""

    def window_blocks(self, num_tokens: int, num_certain: int) -> int:
        """Blocks that a sequence holds in the tables with a window.

        Args:
            num_tokens: Tokens that it has blocks for.
            num_certain: Those of them that are computed and certain, drafts that may be rejected excepted.
        """
        block_size = self.block_size
        num_blocks = -(-num_tokens // block_size)
        return sum(
            group.num_tables * (num_blocks - first_kept_block(num_certain, group.window, block_size))
            for group in self.windows
        )

    def most_window_blocks(self, num_tokens: int, num_open: int) -> int:
        """The most blocks that a sequence holds in the tables with a window, while a step runs or after it.

        Args:
            num_tokens: The most tokens that it has blocks for.
            num_open: The most of them that are not computed and certain before the step.
        """
        block_size = self.block_size
        num_blocks = -(-num_tokens // block_size)
        # So many tokens lie in one block more than they fill, unless they begin where a block does.
        return sum(
            group.num_tables * min(num_blocks, -(-(group.window + num_open - 1) // block_size) + 1)
            for group in self.windows
        )

    def chunked_window_blocks(self, num_tokens: int, num_shared: int = 0, fork_from: int = 0) -> int:
        """The most blocks that a sequence holds in the tables with a window until it has computed num_tokens tokens.

        Args:
            num_shared: Tokens that it has computed before its first chunk, at least.
            fork_from: As Admit has it.
        """
        num_open = max(1, min(self.max_chunk, num_tokens - num_shared))
        if fork_from:
            num_open = max(num_open, num_tokens - fork_from)
        return self.most_window_blocks(num_tokens, num_open)

    def num_tokens_until_slide(self, num_certain: int) -> int:
        """The length at which a sequence of so many computed and certain tokens next gives a block back."""
        block_size = self.block_size
        return min(
            (
                (first_kept_block(num_certain, group.window, block_size) + 1) * block_size + group.window
                for group in self.windows
            ),
            default=1 << 62,
        )

    def least_window_blocks(self, num_tokens: int) -> int:
        """The fewest blocks that a sequence of so many computed tokens or more holds in the tables with a window."""
        return sum(group.num_tables * -(-min(num_tokens, group.window) // self.block_size) for group in self.windows)

    def blocks_alone(self, num_tokens: int) -> int:
        """Blocks that suffice for a sequence of so many tokens that has the pool to itself."""
        num_full = self.num_full_tables * -(-num_tokens // self.block_size)
        return num_full + self.chunked_window_blocks(num_tokens)
