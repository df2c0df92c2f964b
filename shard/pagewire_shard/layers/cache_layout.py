"""How the layers' caches share the blocks of one pool.

Layers with the same window are a cache group (pagewire_common/cache_groups.py). A block of the pool has a fixed number
of places, each for one layer of the largest cache, or for several of a smaller one. Blocks of all groups are therefore
equally large, and a group with more layers has several block tables. A model of one window has one table, and a block
of it has a place for every layer.

A place is a tensor pair, and layers of different tables share it: they write to different blocks. Where a layer takes
one of n parts of a place, its cache is a view of the place in blocks an n-th as large, and block b of the pool is block
n * b of the view.

Recurrent state is no matter of blocks: it has slots of its own, one for each sequence and some for checkpoints
(docs/architecture.md, "Cache groups").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pagewire_common.cache_groups import CacheGroup

from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.cache import CacheSpec, KeyValueCacheSpec, SharedCacheSpec, StateSpec
from pagewire_shard.layers.forward_batch import KVCache

MAX_TABLES = 12
"""Most block tables of a model. Each takes some microseconds in every step and in every block that a sequence fills."""
MIN_SAVING = 0.02
"""Share of the bytes that more tables must save."""
TYPICAL_LEN = 32768
"""Tokens of the sequence whose blocks are to be as few as possible, if the model takes so many."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Where a layer has its cache."""

    place: int
    part: int = 0
    """Of the parts of the place, as many as its table's layers make of it."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The groups, tables and caches of a model's layers."""

    groups: tuple[CacheGroup, ...]
    """Those that have block tables."""
    layer_tables: tuple[int, ...]
    """For each layer its block table, counted over all groups in their order; 0 if it has no blocks."""
    layer_caches: tuple[LayerCache | None, ...]
    """For each layer its cache, which it shares with one layer of each other table, or with the layer whose keys and
    values it reads; None: it has no blocks."""
    layer_specs: tuple[CacheSpec | None, ...]
    """What each layer's cache holds."""
    specs: tuple[CacheSpec, ...]
    """What each place holds."""
    table_parts: tuple[int, ...]
    """For each table the number of parts that its layers make of a place."""
    states: tuple[StateSpec | None, ...]
    """What each layer keeps of a sequence in a state slot."""

    @property
    def has_states(self) -> bool:
        """Whether any layer has recurrent state."""
        return any(self.states)

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block of the pool takes in all places."""
        return sum(spec.block_bytes(block_size, dtype) for spec in self.specs)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that one state slot takes in all layers."""
        return sum(state.slot_bytes(dtype) for state in self.states if state is not None)

    def allocate_places(
        self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> list[KVCache]:
        """The tensors of each place, uninitialised."""
        return [spec.allocate(num_blocks, block_size, dtype, device) for spec in self.specs]

    def layers_in(
        self, places: Sequence[KVCache], block_size: int, dtype: torch.dtype, device: torch.device, num_states: int = 0
    ) -> list[KVCache]:
        """The cache of each layer: its blocks' tensors in the places, and its state's, uninitialised.

        num_states: State slots; there is one more, for padding.
        """
        states = [() if state is None else state.allocate(num_states + 1, dtype, device) for state in self.states]
        blocks: list[KVCache] = []
        for cache, spec, table in zip(self.layer_caches, self.layer_specs, self.layer_tables, strict=True):
            num_parts = self.table_parts[table]
            if cache is None:
                blocks.append(())
            elif isinstance(spec, KeyValueCacheSpec) and num_parts > 1:
                blocks.append(spec.part_of(places[cache.place], num_parts, cache.part, block_size))
            else:
                blocks.append(places[cache.place])
        return [(*block, *state) for block, state in zip(blocks, states, strict=True)]

    def allocate(
        self, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device, num_states: int = 0
    ) -> list[KVCache]:
        """The cache of each layer, in places of its own; see layers_in."""
        places = self.allocate_places(num_blocks, block_size, dtype, device)
        return self.layers_in(places, block_size, dtype, device, num_states)


def plan_layout(layers: Sequence[LayerSpec], max_model_len: int, stage: range | None = None) -> CacheLayout:
    """The layout that takes fewest bytes for a long sequence.

    Layers of one window whose caches differ in shape, or whose sizes do not divide the largest one, have everything
    kept in one table. A model without blocks has a table of blocks of no bytes, by which its prefixes are named.

    Args:
        stage: Those of the layers that are a stage of a pipeline; None: all. All stages have the same groups and
            tables, so that blocks have the same numbers in each of them, and places for their own layers alone.
    """
    specs = {i: spec for i, layer in enumerate(layers) if (spec := layer.mixer.cache) is not None}
    owners = {i: spec.layer if isinstance(spec, SharedCacheSpec) else i for i, spec in specs.items()}
    own = {i: spec for i, spec in specs.items() if owners[i] == i}
    windows = {i: window if (window := layers[i].mixer.window) < max_model_len else 0 for i in own}
    states = tuple(layer.mixer.state for layer in layers)
    part = _Layers.of(own, owners, states, stage or range(len(layers)))
    kinds = sorted(set(windows.values()))
    if len(kinds) <= 1:
        return _one_table(part, kinds[0] if kinds else 0)
    shapes = {window: {spec for i, spec in own.items() if windows[i] == window} for window in kinds}
    parts = _parts(shapes)
    counts = {window: list(windows.values()).count(window) for window in kinds}
    num_places = None if parts is None else _num_places(counts, parts, min(max_model_len, TYPICAL_LEN))
    if parts is None or num_places is None:
        return _one_table(part, 0)
    groups = [CacheGroup(window, -(-counts[window] // (num_places * parts[window]))) for window in kinds]
    largest = next(spec for i, spec in own.items() if parts[windows[i]] == 1)
    return _grouped(part, [windows.get(i, 0) for i in part.held], groups, parts, largest)


@dataclass(frozen=True, slots=True)
class _Layers:
    """The layers that caches are planned for, counted from the first of them."""

    held: range
    """Where they are among those of all stages."""
    own: Mapping[int, CacheSpec]
    """By layer that has a cache of its own."""
    owners: Mapping[int, int]
    """By layer that has a cache: the layer whose it is."""
    states: tuple[StateSpec | None, ...]

    @staticmethod
    def of(
        own: Mapping[int, CacheSpec], owners: Mapping[int, int], states: tuple[StateSpec | None, ...], held: range
    ) -> "_Layers":
        """Those of a range of all layers."""
        first = held.start
        return _Layers(
            held=held,
            own={i - first: spec for i, spec in own.items() if i in held},
            owners={i - first: owner - first for i, owner in owners.items() if i in held},
            states=states[held.start : held.stop],
        )

    @property
    def specs(self) -> tuple[CacheSpec | None, ...]:
        """What the cache of each layer holds."""
        return tuple(self.own[self.owners[i]] if i in self.owners else None for i in range(len(self.held)))


def _parts(shapes: Mapping[int, set[CacheSpec]]) -> dict[int, int] | None:
    """By window the number of parts that its layers make of a place; None: blocks cannot be equally large."""
    if all(len(specs) == 1 for specs in shapes.values()) and len(set.union(*shapes.values())) == 1:
        return dict.fromkeys(shapes, 1)
    sizes = {}
    for window, specs in shapes.items():
        spec = next(iter(specs))
        if len(specs) > 1 or not isinstance(spec, KeyValueCacheSpec):
            return None
        sizes[window] = spec.num_kv_heads * spec.head_dim
    largest = max(sizes.values())
    if any(largest % size for size in sizes.values()):
        return None
    return {window: largest // size for window, size in sizes.items()}


def _num_places(counts: Mapping[int, int], parts: Mapping[int, int], num_tokens: int) -> int | None:
    """Places of a block; None: one table for all layers takes less.

    Args:
        counts: Number of layers by window.
        parts: Of a place, by window.
        num_tokens: Length of the sequence for which most is to be saved.
    """
    best, least = None, sum(num_layers / parts[window] for window, num_layers in counts.items()) * num_tokens
    # Of those that take nearly the same, the one with the fewest tables.
    for num_places in range(max(-(-num_layers // parts[window]) for window, num_layers in counts.items()), 0, -1):
        tables = {window: -(-num_layers // (num_places * parts[window])) for window, num_layers in counts.items()}
        kept = sum(num * min(window or num_tokens, num_tokens) for window, num in tables.items())
        if sum(tables.values()) <= MAX_TABLES and kept * num_places < (1 - MIN_SAVING) * least:
            best, least = num_places, kept * num_places
    return best


def _grouped(
    layers: _Layers,
    windows: Sequence[int],
    groups: Sequence[CacheGroup],
    parts: Mapping[int, int],
    largest: CacheSpec,
) -> CacheLayout:
    """The layout with a group for each window, and as few places as its tables leave layers for.

    Args:
        windows: By layer; of those without a cache of their own they mean nothing.
        parts: Of a place, by window.
        largest: What a place holds.
    """
    members = {group.window: [i for i in layers.own if windows[i] == group.window] for group in groups}
    num_places = max(-(-len(members[each.window]) // (each.num_tables * parts[each.window])) for each in groups)
    tables, caches = [0] * len(windows), list[LayerCache | None]([None] * len(windows))
    first = 0
    for group in groups:
        num_parts = parts[group.window]
        per_table = num_places * num_parts
        for index, i in enumerate(members[group.window]):
            tables[i] = first + index // per_table
            caches[i] = LayerCache(index % per_table // num_parts, index % num_parts)
        first += group.num_tables
    for i, owner in layers.owners.items():
        tables[i], caches[i] = tables[owner], caches[owner]
    return CacheLayout(
        groups=tuple(groups),
        layer_tables=tuple(tables),
        layer_caches=tuple(caches),
        layer_specs=layers.specs,
        specs=(largest,) * num_places,
        table_parts=tuple(parts[group.window] for group in groups for _ in range(group.num_tables)),
        states=layers.states,
    )


def _one_table(layers: _Layers, window: int) -> CacheLayout:
    """The layout with a place for each layer."""
    places = {i: LayerCache(place) for place, i in enumerate(layers.own)}
    owners = layers.owners
    return CacheLayout(
        groups=(CacheGroup(window),),
        layer_tables=(0,) * len(layers.held),
        layer_caches=tuple(places[owners[i]] if i in owners else None for i in range(len(layers.held))),
        layer_specs=layers.specs,
        specs=tuple(layers.own.values()),
        table_parts=(1,),
        states=layers.states,
    )
