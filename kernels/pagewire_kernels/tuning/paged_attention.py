"""Tile configurations of paged attention: paged_attention.json, which a re-tuning run rewrites, read into dataclasses.

An entry serves one class of queries ("decode": one token per sequence; "shared": these, on keys that several of them
share; "own": these, on the few keys that they do not share, where that differs from "decode"; "prefill";
"hopper_prefill": what Hopper's own kernel takes of these), one GPU generation (compute capability times ten; 0: any
that has no entry of its own), heads up to max_head_dim and elements of element_bytes.
"""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How one program of the decode kernel works, and how many of them a batch is shared out to."""

    tile: int
    """Most keys that are loaded at once; a power of two, at least 16."""
    num_warps: int
    num_stages: int
    programs_per_sm: int
    """Programs per multiprocessor that a batch is split into: those that are resident at a time make one wave."""
    min_split_tiles: int
    """Tiles below which a split costs more than it saves."""


@dataclass(frozen=True, slots=True)
class SharedConfig:
    """How one program of the kernel for shared prefixes works, and how many of them a batch is shared out to."""

    block_m: int
    """Rows, sequences times heads of a group, of one tile; a power of two, at least 16."""
    tile: int
    """Most keys that are loaded at once; a power of two, at least 16."""
    num_warps: int
    num_stages: int
    programs_per_sm: int
    """Programs per multiprocessor that a batch is shared out to: those that are resident at a time make one wave."""


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How one program of the prefill kernel works."""

    block_m: int
    """Rows, queries times heads of a group, of one program; a power of two, at least 16."""
    tile: int
    """Most keys that are loaded at once; a power of two, at least 16."""
    num_warps: int
    num_stages: int
    late_values: bool
    """Whether a tile's values are added while the next tile's exponentials are computed."""


@dataclass(frozen=True, slots=True)
class HopperPrefillConfig:
    """Tile sizes of the prefill kernel for Hopper (paged_attention/hopper_prefill.py)."""

    tile: int
    """Keys in a tile: 64 or 128."""
    num_stages: int
    """Tiles of keys, and as many of values, that shared memory holds; at least 2, or the kernel waits for itself."""


@cache
def decode_config(gpu: int, head_dim: int, element_bytes: int, is_shared: bool = False) -> DecodeConfig:
    """Returns the table's entry for decodes; is_shared: for the keys that they do not share with others.

    Raises:
        ValueError: heads are larger than any entry serves.
    """
    if is_shared:
        try:
            return DecodeConfig(**_find("own", DecodeConfig, gpu, head_dim, element_bytes))
        except ValueError:
            pass
    return DecodeConfig(**_find("decode", DecodeConfig, gpu, head_dim, element_bytes))


@cache
def shared_config(gpu: int, head_dim: int, element_bytes: int) -> SharedConfig:
    """Returns the table's entry for the keys that decodes share.

    Raises:
        ValueError: heads are larger than any entry serves.
    """
    return SharedConfig(**_find("shared", SharedConfig, gpu, head_dim, element_bytes))


@cache
def prefill_config(gpu: int, head_dim: int, element_bytes: int) -> PrefillConfig:
    """Returns the table's entry for prefills.

    Raises:
        ValueError: heads are larger than any entry serves.
    """
    return PrefillConfig(**_find("prefill", PrefillConfig, gpu, head_dim, element_bytes))


@cache
def hopper_prefill_config(gpu: int, head_dim: int, element_bytes: int) -> HopperPrefillConfig | None:
    """Returns the table's entry for prefills by the kernel for Hopper; None: that kernel does not take them."""
    try:
        return HopperPrefillConfig(**_find("hopper_prefill", HopperPrefillConfig, gpu, head_dim, element_bytes))
    except ValueError:
        return None


def tile_for(block_size: int, tile: int) -> int:
    """Returns the tile for a block size. A tile that divides blocks needs a single look-up in the block table.

    Blocks of fewer than 64 keys are not worth a tile each: several of them are gathered into one.
    """
    return block_size if 64 <= block_size < tile and tile % block_size == 0 else tile


def _find(query: str, kind: type, gpu: int, head_dim: int, element_bytes: int) -> dict[str, Any]:
    for generation in (gpu, 0):
        fitting = [
            entry
            for entry in _entries()
            if entry["query"] == query
            and entry["gpu"] == generation
            and entry["element_bytes"] == element_bytes
            and entry["max_head_dim"] >= head_dim
        ]
        if fitting:
            entry = min(fitting, key=lambda entry: entry["max_head_dim"])
            return {field.name: entry[field.name] for field in fields(kind)}
    raise ValueError(f"paged_attention on GPUs does not take heads of {head_dim} elements of {element_bytes} bytes")


@cache
def _entries() -> list[dict[str, Any]]:
    text = files(__package__).joinpath("paged_attention.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)
    return entries
