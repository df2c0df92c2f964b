"""How the layers' caches share the blocks of one pool.

Layers with the same window are a cache group (pagewire_common/cache_groups.py). A block of the pool has room for a
fixed number of layers, so that blocks of all groups are equally large: a group with more layers has several block
tables. A model of one window has one table, and a block of it has room for all layers.

Recurrent state is no matter of blocks: it has slots of its own, one for each sequence and some for checkpoints
(docs/architecture.md, "Cache groups").

A cache is then one tensor pair for each of the layers that a block has room for, and layers of different tables share
it: they write to different blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pagewire_common.cache_groups import CacheGroup

from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.cache import CacheSpec, SharedCacheSpec, StateSpec
from pagewire_shard.layers.forward_batch import KVCache

MAX_TABLES = 8
"""Most block tables of a model. Each takes some microseconds in every step and in every block that a sequence fills."""
TYPICAL_LEN = 32768
"""Tokens of the sequence whose blocks are to be as few as possible, if the model takes so many."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The groups, tables and caches of a model's layers."""

    groups: tuple[CacheGroup, ...]
    """Those that have block tables."""
    layer_tables: tuple[int, ...]
    """For each layer its block table, counted over all groups in their order; 0 if it has no blocks."""
    layer_caches: tuple[int | None, ...]
    """For each layer its cache, which it shares with one layer of each other table; None: it has no blocks."""
    specs: tuple[CacheSpec, ...]
    """What each cache holds."""
    states: tuple[StateSpec | None, ...]
    """What each layer keeps of a sequence in a state slot."""

    @property
    def has_states(self) -> bool:
        """Whether any layer has recurrent state."""
        return any(self.states)

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block of the pool takes in all caches."""
        return sum(spec.block_bytes(block_size, dtype) for spec in self.specs)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that one state slot takes in all layers."""
        return sum(state.slot_bytes(dtype) for state in self.states if state is not None)

    def allocate(
        self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device, num_states: int = 0
    ) -> list[KVCache]:
        """The cache of each layer, uninitialised.

        num_states: State slots; there is one more, for padding.
        """
        caches = [spec.allocate(num_blocks, block_size, dtype, device) for spec in self.specs]
        states = [() if state is None else state.allocate(num_states + 1, dtype, device) for state in self.states]
        return [
            (*(() if cache is None else caches[cache]), *state)
            for cache, state in zip(self.layer_caches, states, strict=True)
        ]


def plan_layout(layers: Sequence[LayerSpec], max_model_len: int) -> CacheLayout:
    """The layout that takes fewest bytes for a long sequence.

    Layers whose caches differ in more than the window are kept in one table, which keeps all tokens. A model without
    blocks has a table of blocks of no bytes, by which its prefixes are named.
    """
    specs = {i: spec for i, layer in enumerate(layers) if (spec := layer.mixer.cache) is not None}
    windows = {i: window if (window := layers[i].mixer.window) < max_model_len else 0 for i in specs}
    states = tuple(layer.mixer.state for layer in layers)
    counts = {window: list(windows.values()).count(window) for window in sorted(set(windows.values()))}
    if len(counts) <= 1:
        return _one_table(specs, next(iter(counts), 0), states)
    per_block = _layers_per_block(counts, min(max_model_len, TYPICAL_LEN))
    if len(set(specs.values())) > 1 or per_block is None:
        return _one_table(specs, 0, states)
    groups = tuple(CacheGroup(window, -(-num_layers // per_block)) for window, num_layers in counts.items())
    first_tables = {group.window: sum(g.num_tables for g in groups[:i]) for i, group in enumerate(groups)}
    seen = dict.fromkeys(counts, 0)
    tables, caches = [0] * len(layers), list[int | None]([None] * len(layers))
    for i, window in windows.items():
        tables[i], caches[i] = first_tables[window] + seen[window] // per_block, seen[window] % per_block
        seen[window] += 1
    return CacheLayout(groups, tuple(tables), tuple(caches), tuple(specs.values())[:per_block], states)


def _one_table(specs: dict[int, CacheSpec], window: int, states: tuple[StateSpec | None, ...]) -> CacheLayout:
    """specs: By layer."""
    owners = [i for i, spec in specs.items() if not isinstance(spec, SharedCacheSpec)]
    caches: list[int | None] = [None] * len(states)
    for i, spec in specs.items():
        caches[i] = owners.index(spec.layer if isinstance(spec, SharedCacheSpec) else i)
    own = tuple(specs[i] for i in owners)
    return CacheLayout((CacheGroup(window),), (0,) * len(states), tuple(caches), own, states)


def _layers_per_block(counts: dict[int, int], num_tokens: int) -> int | None:
    """Layers that a block has room for; None: one table for all layers takes less.

    Args:
        counts: Number of layers by window.
        num_tokens: Length of the sequence for which most is to be saved.
    """
    best, least = None, sum(counts.values()) * num_tokens
    # Where several take the same, the one with the fewest tables.
    for per_block in range(max(counts.values()), 0, -1):
        tables = {window: -(-num_layers // per_block) for window, num_layers in counts.items()}
        kept = sum(num * min(window or num_tokens, num_tokens) for window, num in tables.items())
        if sum(tables.values()) <= MAX_TABLES and kept * per_block < least:
            best, least = per_block, kept * per_block
    return best
