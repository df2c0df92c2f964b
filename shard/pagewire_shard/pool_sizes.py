"""How memory is divided among blocks of tokens and slots of recurrent state.

The two pools have a fixed size each. A state is some hundred times as large as a block: pages for both would be so
large that a block wastes them, or a state would need a run of neighbours. Since there are STATES_PER_SEQUENCE slots for
each sequence, one that has a place on the shard has its state too, and routers count blocks alone.
"""

from dataclasses import dataclass

from pagewire_common.cache_groups import STATES_PER_SEQUENCE

STATES_SHARE = 1 / 2
"""Most of the memory of both pools that the states of sequences are chosen to take."""
CHECKPOINT_TOKENS = 8192
"""There is a state slot for each so many tokens in blocks, if that is more than sequences need."""
MAX_UNSTORED_BLOCKS = 1 << 20
"""Blocks of a model that keeps nothing in them: they name its prefixes. The host takes some hundred bytes for each."""


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """What the pools of a shard hold."""

    num_blocks: int
    num_states: int
    """0: the model has no recurrent state."""
    max_num_seqs: int
    """Sequences that the states suffice for."""


def most_seqs_with_states(num_bytes: int, state_bytes: int) -> int:
    """Sequences whose states take STATES_SHARE of both pools, 1 at least."""
    return max(1, int(num_bytes * STATES_SHARE) // (STATES_PER_SEQUENCE * state_bytes))


def divide_pool(
    num_bytes: int,
    block_bytes: int,
    state_bytes: int,
    *,
    block_size: int,
    max_num_seqs: int,
    blocks_of_longest: int,
    has_states: bool = False,
) -> PoolSizes:
    """Divides memory; no blocks: it does not suffice for the states.

    Args:
        block_bytes: Of a block; 0: the model keeps nothing of tokens.
        state_bytes: Of a state slot; 0: it keeps no states.
        blocks_of_longest: Blocks of the longest sequence. More than all sequences of this length can never be used.
        has_states: Other stages of the pipeline keep states, so that there are slots for them though these take
            nothing here.
    """
    most_blocks = blocks_of_longest * max_num_seqs
    if not state_bytes:
        num_blocks = min(num_bytes // block_bytes if block_bytes else MAX_UNSTORED_BLOCKS, most_blocks)
        return PoolSizes(
            num_blocks, max(STATES_PER_SEQUENCE * max_num_seqs, num_blocks) if has_states else 0, max_num_seqs
        )
    least_states = STATES_PER_SEQUENCE * max_num_seqs
    if not block_bytes:
        num_states = max(least_states, num_bytes // state_bytes)
        num_blocks = min(most_blocks, MAX_UNSTORED_BLOCKS) if num_states * state_bytes <= num_bytes else 0
        return PoolSizes(num_blocks, num_states, max_num_seqs)
    checkpoint_bytes = state_bytes + -(-CHECKPOINT_TOKENS // block_size) * block_bytes
    num_states = max(least_states, num_bytes // checkpoint_bytes)
    num_blocks = min(max(0, num_bytes - num_states * state_bytes) // block_bytes, most_blocks)
    # Each checkpoint is behind a block.
    return PoolSizes(num_blocks, max(least_states, min(num_states, num_blocks)), max_num_seqs)
